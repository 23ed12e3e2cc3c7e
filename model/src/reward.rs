//! Reward definitions over the head's raw scores (Q-RM, arXiv 2505.23363, §3) and their normalisation.

use serde::{Deserialize, Serialize};

/// What a checkpoint was trained to be; decides which [`RewardKind`]s it can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadKind {
    /// Logits over the vocabulary at the position before each response token.
    QVocab,
    /// One scalar at each response token's own position.
    QScalar,
    /// The scalar at the last response token only (ORM).
    Outcome,
    /// The scalar at the last token of each step (PRM).
    Step,
    /// Logits of a policy trained with DPO, read against its reference.
    Dpo,
}

impl HeadKind {
    /// As `qrm_config.json` names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QVocab => "q_vocab",
            Self::QScalar => "q_scalar",
            Self::Outcome => "outcome",
            Self::Step => "step",
            Self::Dpo => "dpo",
        }
    }

    /// The reward served when a request names none.
    pub fn default_reward(self) -> RewardKind {
        match self {
            Self::QVocab => RewardKind::Advantage,
            Self::QScalar => RewardKind::Logit,
            Self::Outcome => RewardKind::Outcome,
            Self::Step => RewardKind::Step,
            Self::Dpo => RewardKind::Dpo,
        }
    }

    /// Whether it has logits over the vocabulary, else one scalar.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Self::QVocab | Self::Dpo)
    }

    /// Whether this head can give `reward`.
    pub fn gives(self, reward: RewardKind) -> bool {
        match reward {
            RewardKind::Logit => true,
            RewardKind::Advantage | RewardKind::CenteredLogit => self.is_vocabulary(),
            RewardKind::Outcome => !self.is_vocabulary(),
            RewardKind::Step => self == Self::Step,
            RewardKind::Dpo => self == Self::Dpo,
        }
    }
}

/// The reward asked for, named as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardKind {
    /// `Z(s_t,a_t) − logsumexp_a Z(s_t,a) = log φ(a_t|s_t)`, never above 0.
    Advantage,
    /// `Z(s_t,a_t)`.
    Logit,
    /// `Z(s_t,a_t) − max_a Z(s_t,a)`.
    CenteredLogit,
    /// The scalar at the last response token, zeros before it.
    Outcome,
    /// The scalar at the last token of each step, zeros elsewhere.
    Step,
    /// `β (log π − log π_ref)`.
    Dpo,
}

impl RewardKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Advantage, Self::Logit, Self::CenteredLogit, Self::Outcome, Self::Step, Self::Dpo];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Advantage => "advantage",
            Self::Logit => "logit",
            Self::CenteredLogit => "centered_logit",
            Self::Outcome => "outcome",
            Self::Step => "step",
            Self::Dpo => "dpo",
        }
    }
}

/// What the head says of one trajectory's T response tokens. All finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// `Z(s_t,a_t)`, `[T]`; of a scalar head, the scalar.
    pub logit: Vec<f32>,
    /// Vocabulary heads only; empty for scalar heads.
    pub logsumexp: Vec<f32>,
    /// `max_a Z(s_t,a)`; vocabulary heads only.
    pub max: Vec<f32>,
    /// `H(φ(·|s_t))` in nats; vocabulary heads only.
    pub entropy: Vec<f32>,
    /// The reward of [`HeadKind::Step`] and [`HeadKind::Dpo`], which takes more than a token's scores to tell: where
    /// steps end, what a reference policy says. Empty for other heads.
    pub own: Vec<f32>,
}

impl TokenScores {
    /// The scores of tokens `range` alone.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        let part = |values: &[f32]| values.get(range.clone()).map(<[f32]>::to_vec).unwrap_or_default();
        Self {
            logit: part(&self.logit),
            logsumexp: part(&self.logsumexp),
            max: part(&self.max),
            entropy: part(&self.entropy),
            own: part(&self.own),
        }
    }

    /// Whether every number is finite.
    pub fn is_finite(&self) -> bool {
        let all = [&self.logit, &self.logsumexp, &self.max, &self.entropy, &self.own];
        all.iter().all(|values| values.iter().all(|v| v.is_finite()))
    }

    /// The `[T]` rewards of `kind`. The caller has checked [`HeadKind::gives`]; a vocabulary reward of a
    /// scalar head would come out empty.
    pub fn rewards(&self, kind: RewardKind) -> Vec<f32> {
        let minus = |other: &[f32]| self.logit.iter().zip(other).map(|(z, o)| (z - o).min(0.0)).collect();
        match kind {
            RewardKind::Advantage => minus(&self.logsumexp),
            RewardKind::CenteredLogit => minus(&self.max),
            RewardKind::Logit => self.logit.clone(),
            RewardKind::Step | RewardKind::Dpo => self.own.clone(),
            RewardKind::Outcome => {
                let last = self.logit.len().saturating_sub(1);
                self.logit.iter().enumerate().map(|(t, z)| if t == last { *z } else { 0.0 }).collect()
            }
        }
    }
}

/// Count, mean and standard deviation (population, as `torch.std(correction=0)`) of rewards, in f64.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// How many numbers went in.
    pub count: usize,
    /// Their mean; 0 when there are none.
    pub mean: f64,
    /// Their standard deviation; 0 when there are none.
    pub std: f64,
}

impl Stats {
    /// Two passes, so that a large mean costs no precision.
    pub fn of<'a>(values: impl Iterator<Item = &'a f32> + Clone) -> Self {
        let count = values.clone().count();
        let n = count.max(1) as f64;
        let mean = values.clone().map(|v| f64::from(*v)).sum::<f64>() / n;
        let var = values.map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
        Self { count, mean, std: var.sqrt() }
    }
}

/// How rewards are scaled over all response tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// As they are.
    #[default]
    None,
    /// Divided by σ, as the released Q-RM code does.
    Std,
    /// `(r − μ)/σ`, as the paper writes it.
    Standard,
}

impl Normalize {
    /// Normalises in place. A σ below 1e-8 (constant rewards) divides by 1, so the result stays finite.
    pub fn apply(self, rewards: &mut [f32], stats: &Stats) {
        let sigma = if stats.std > 1e-8 { stats.std } else { 1.0 };
        let mean = match self {
            Self::None => return,
            Self::Std => 0.0,
            Self::Standard => stats.mean,
        };
        for r in rewards {
            *r = ((f64::from(*r) - mean) / sigma) as f32;
        }
    }
}

//! Who judges whom: reward models, controls, and the policies that each trains.

use clap::builder::PossibleValuesParser;

/// What a policy is rewarded by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Judge {
    /// In names of files.
    pub(super) name: &'static str,
    /// In tables.
    pub(super) label: &'static str,
    /// The reward model; none: the verifier.
    pub(super) model: Option<&'static str>,
    /// Learning rate of the policies it trains, for one move a step: the better of 3e-5 and 1e-4 on validation problems, by
    /// REINFORCE. The larger brings out what Q-RM has to say, and by the ORM, the PRM or the DPO-RM it destroys a policy. The
    /// backbone has the Q-RM's; a scalar head, not compared in this way, has the smaller.
    pub(super) lr: f64,
    /// Flags of a run.
    pub(super) flags: &'static str,
}

/// The paper's comparison, its reference, and controls.
pub(super) const JUDGES: [Judge; 8] = [
    Judge { name: "orm", label: "ORM", model: Some("orm"), lr: 3e-5, flags: "--normalize standard" },
    Judge {
        name: "prm",
        label: "PRM, step level",
        model: Some("prm"),
        lr: 3e-5,
        flags: "--normalize standard",
    },
    Judge { name: "dpo", label: "DPO-RM", model: Some("dpo"), lr: 3e-5, flags: "--normalize std" },
    Judge {
        name: "qrm",
        label: "Q-RM",
        model: Some("qrm"),
        lr: 1e-4,
        flags: "--reward advantage --baseline entropy --normalize std",
    },
    Judge {
        name: "qrm-logit",
        label: "Q-RM, logits as published",
        model: Some("qrm"),
        lr: 1e-4,
        flags: "--reward logit --normalize std",
    },
    Judge {
        name: "qrm-scalar",
        label: "Q-RM, scalar head",
        model: Some("qrm-scalar"),
        lr: 3e-5,
        flags: "--normalize std",
    },
    Judge {
        name: "backbone",
        label: "untrained backbone read as a Q-RM",
        model: Some("backbone"),
        lr: 1e-4,
        flags: "--reward advantage --baseline entropy --normalize std",
    },
    Judge {
        name: "verifier",
        label: "the verifier itself",
        model: None,
        lr: 3e-5,
        flags: "--judge verifier --normalize standard",
    },
];

/// Reward models that the server has, by name.
pub(super) const MODELS: [&str; 6] = ["qrm", "qrm-scalar", "orm", "prm", "dpo", "backbone"];

/// One policy's training.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    pub(super) algorithm: &'static str,
    pub(super) judge: Judge,
}

/// The paper's comparison, and the others; of the judges that are wanted.
pub(super) fn arms(wanted: &[Judge]) -> [Vec<Arm>; 2] {
    let both = |judge: &Judge| ["reinforce", "ppo"].map(|algorithm| Arm { algorithm, judge: *judge });
    let verifier = JUDGES[JUDGES.len() - 1];
    let (paper, controls) = JUDGES.split_at(4);
    let grpo = Arm { algorithm: "grpo", judge: verifier };
    let is_wanted = |arm: &Arm| wanted.contains(&arm.judge);
    [
        paper.iter().flat_map(both).chain([grpo]).filter(is_wanted).collect(),
        controls.iter().flat_map(both).filter(is_wanted).collect(),
    ]
}

/// Names of all judges.
pub(super) fn names() -> PossibleValuesParser {
    JUDGES.map(|judge| judge.name).into()
}

/// The judges of these names; of no name, all.
pub(super) fn judges(names: &[String]) -> Vec<Judge> {
    let is_named = |judge: &Judge| names.is_empty() || names.iter().any(|name| name == judge.name);
    JUDGES.into_iter().filter(is_named).collect()
}

/// Reward models that these judges need, in the order of [`MODELS`].
pub(super) fn served(judges: &[Judge]) -> Vec<&'static str> {
    MODELS.into_iter().filter(|model| judges.iter().any(|judge| judge.model == Some(*model))).collect()
}

impl Arm {
    /// `reinforce-orm`.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.algorithm, self.judge.name)
    }

    /// PPO moves twice in a step, so that there is a ratio to clip; the way it goes is as long.
    pub(super) fn rates(&self) -> String {
        let moves = if self.algorithm == "ppo" { 2 } else { 1 };
        format!("--lr {:e} --minibatches {moves}", self.judge.lr / f64::from(moves))
    }
}

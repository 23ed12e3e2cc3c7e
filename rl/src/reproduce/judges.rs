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
    /// Flags of a run.
    pub(super) flags: &'static str,
}

/// The paper's comparison, its reference, and controls.
pub(super) const JUDGES: [Judge; 8] = [
    Judge { name: "orm", label: "ORM", model: Some("orm"), flags: "--normalize standard" },
    Judge { name: "prm", label: "PRM, step level", model: Some("prm"), flags: "--normalize standard" },
    Judge { name: "dpo", label: "DPO-RM", model: Some("dpo"), flags: "--normalize std" },
    Judge {
        name: "qrm",
        label: "Q-RM",
        model: Some("qrm"),
        flags: "--reward advantage --baseline entropy --normalize std",
    },
    Judge {
        name: "qrm-logit",
        label: "Q-RM, logits as published",
        model: Some("qrm"),
        flags: "--reward logit --normalize std",
    },
    Judge {
        name: "qrm-scalar",
        label: "Q-RM, scalar head",
        model: Some("qrm-scalar"),
        flags: "--normalize std",
    },
    Judge {
        name: "backbone",
        label: "untrained backbone read as a Q-RM",
        model: Some("backbone"),
        flags: "--reward advantage --baseline entropy --normalize std",
    },
    Judge {
        name: "verifier",
        label: "the verifier itself",
        model: None,
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

    /// Chosen on validation problems, by rewards that are in no table's claim: at 1e-4 and above the noise of 256 answers
    /// alone costs more than even the verifier's rewards bring. PPO moves twice in a step, so that there is a ratio to
    /// clip; the way it goes is as long.
    pub(super) fn rates(&self) -> &'static str {
        match self.algorithm {
            "ppo" => "--lr 1.5e-5 --minibatches 2",
            _ => "--lr 3e-5",
        }
    }
}

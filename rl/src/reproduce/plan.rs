//! The experiment as commands: sizes, models, and who judges whom.

use super::stage::{Stage, Workshop};

/// How large everything is.
#[derive(Debug, Clone)]
pub(super) struct Size {
    /// Of the policy and the reward models; flags of `task start`.
    shape: &'static str,
    /// Worked answers to learn the task from.
    answers: usize,
    /// Steps of SFT on them: of the policy, and from there on of the reward models' backbone, which knows the task better.
    sft: (usize, usize),
    /// Problems whose answers become pairs, and labelled steps.
    sampled: (usize, usize),
    /// Steps of each reward model.
    rm_steps: usize,
    /// Steps of a policy, questions and answers to each.
    rl: (usize, usize, usize),
    /// Steps between evaluations.
    eval_every: usize,
    /// Questions of validation and test, and sampled answers to each.
    questions: (usize, usize, usize),
    /// Seeds of a policy's training.
    pub(super) seeds: usize,
    /// Fewest and most events of a story; controls are at the first.
    pub(super) difficulties: &'static [(usize, usize)],
    /// Longest answer, tokens.
    longest: usize,
}

impl Size {
    /// Hours on two cores.
    pub(super) const FULL: Self = Self {
        shape: "",
        answers: 200_000,
        sft: (2400, 2400),
        sampled: (6000, 4000),
        rm_steps: 400,
        rl: (24, 64, 4),
        eval_every: 3,
        questions: (100, 400, 4),
        seeds: 3,
        difficulties: &[(1, 2), (3, 3)],
        longest: 160,
    };

    /// Everything, of models that have learnt nothing: minutes.
    pub(super) const QUICK: Self = Self {
        shape: "--hidden-size 16 --layers 1 --heads 1 --intermediate-size 32 --vocab-size 320",
        answers: 400,
        sft: (4, 4),
        sampled: (40, 40),
        rm_steps: 2,
        rl: (2, 4, 2),
        eval_every: 1,
        questions: (8, 8, 2),
        seeds: 2,
        difficulties: &[(1, 1), (2, 2)],
        longest: 24,
    };

    /// Steps of a policy.
    pub(super) fn steps(&self) -> usize {
        self.rl.0
    }

    /// Answers that a policy learns from in a step.
    pub(super) fn answers_of_a_step(&self) -> usize {
        self.rl.1 * self.rl.2
    }

    /// Sampled answers to a test question.
    pub(super) fn samples(&self) -> usize {
        self.questions.2
    }

    /// Longest answer, tokens.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

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
    flags: &'static str,
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

/// The paper's comparison, and the others.
pub(super) fn arms() -> [Vec<Arm>; 2] {
    let both = |judge: &Judge| ["reinforce", "ppo"].map(|algorithm| Arm { algorithm, judge: *judge });
    let verifier = JUDGES[JUDGES.len() - 1];
    let (paper, controls) = JUDGES.split_at(4);
    let grpo = Arm { algorithm: "grpo", judge: verifier };
    [paper.iter().flat_map(both).chain([grpo]).collect(), controls.iter().flat_map(both).collect()]
}

impl Arm {
    /// `reinforce-orm`.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.algorithm, self.judge.name)
    }

    /// Chosen on validation problems, by rewards that are in no table's claim: at 1e-4 and above the noise of 256 answers
    /// alone costs more than even the verifier's rewards bring. PPO moves twice in a step, so that there is a ratio to
    /// clip; the way it goes is as long.
    fn rates(&self) -> &'static str {
        match self.algorithm {
            "ppo" => "--lr 1.5e-5 --minibatches 2",
            _ => "--lr 3e-5",
        }
    }
}

/// All up to the reward models, in rounds: the stages of a round need those before it and not one another.
pub(super) fn models(shop: &Workshop, size: &Size) -> [Vec<Stage>; 4] {
    let train = |name: &str, kind: &str, flags: &str| {
        let out = shop.arg(name);
        let flags =
            format!("{kind} --output {out} --micro-batch-tokens 8192 --save-every 200 --resume {flags}");
        shop.stage("qrm-trainer", &format!("{name}/model"), &flags)
    };
    let data = |name: &str, flags: &str| {
        let flags = format!("task {flags} --most-events 3 --output @");
        shop.stage("qrm-trainer", name, &flags)
    };
    let (answers, validation) = (shop.arg("answers.jsonl"), shop.arg("answers-validation.jsonl"));
    let (start, policy) = (shop.arg("start"), shop.arg("policy/model"));
    let (backbone, pairs, steps) =
        (shop.arg("backbone/model"), shop.arg("pairs.jsonl"), shop.arg("steps.jsonl"));
    let sft = format!("--train {answers} --eval {validation} --batch 32 --eval-every 400 --lr 1.5e-3");
    let data_round = vec![
        shop.stage("qrm-trainer", "start", &format!("task start --output {start} {}", size.shape)),
        data("answers.jsonl", &format!("data --rows answers --count {} --seed 1", size.answers)),
        data("answers-validation.jsonl", "data --rows answers --split validation --count 400 --seed 1"),
    ];
    let sft_round =
        vec![train("policy", "sft", &format!("{sft} --model {start} --steps {} --seed 1", size.sft.0))];
    let sampled = vec![
        train(
            "backbone",
            "sft",
            &format!("{sft} --model {policy} --steps {} --warmup 0.03 --seed 2", size.sft.1),
        ),
        data(
            "pairs.jsonl",
            &format!(
                "sample --model {policy} --problems {} --samples 8 --pairs 4 --worked --max-new-tokens {}",
                size.sampled.0, size.longest
            ),
        ),
        data(
            "validation.jsonl",
            &format!(
                "sample --model {policy} --split validation --problems {} --samples 8 --pairs 1 --worked \
                 --max-new-tokens {}",
                size.sampled.0.div_ceil(10),
                size.longest
            ),
        ),
        data(
            "steps.jsonl",
            &format!(
                "sample --rows steps --model {policy} --problems {} --samples 8 --max-new-tokens {}",
                size.sampled.1, size.longest
            ),
        ),
    ];
    let from = format!("--model {backbone} --steps {} --eval-every 100", size.rm_steps);
    let on_pairs =
        format!("{from} --batch 32 --train {pairs} --eval {} --best", shop.arg("validation.jsonl"));
    let reward_models = vec![
        train(
            "rm/qrm",
            "qrm",
            &format!("{on_pairs} --head vocab --beta 10 --gamma 1 --sft-weight 5 --lr 1e-4"),
        ),
        train("rm/orm", "orm", &format!("{on_pairs} --lr 3e-4")),
        train("rm/dpo", "dpo", &format!("{on_pairs} --lr 1e-4")),
        train("rm/prm", "prm", &format!("{from} --batch 64 --train {steps} --lr 3e-4")),
        train("rm/qrm-scalar", "qrm", &format!("{on_pairs} --head scalar --beta 10 --gamma 1 --lr 3e-4")),
    ];
    [data_round, sft_round, sampled, reward_models]
}

/// Where a model of the server is.
pub(super) fn checkpoint(shop: &Workshop, model: &str) -> String {
    match model {
        "backbone" => shop.arg("backbone/model"),
        _ => shop.arg(&format!("rm/{model}/model")),
    }
}

/// Flags of a difficulty's problems.
pub(super) fn events((fewest, most): (usize, usize)) -> String {
    format!("--fewest-events {fewest} --most-events {most}")
}

/// `1-2-events`.
pub(super) fn difficulty((fewest, most): (usize, usize)) -> String {
    format!("{fewest}-{most}-events")
}

/// The same in words.
pub(super) fn stories((fewest, most): (usize, usize)) -> String {
    let count = if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
    format!("stories of {count} event{}", if most == 1 { "" } else { "s" })
}

/// One policy.
pub(super) fn run(
    shop: &Workshop,
    size: &Size,
    url: &str,
    at: (usize, usize),
    arm: &Arm,
    seed: usize,
) -> Stage {
    let name = format!("{}/{}-{seed}", difficulty(at), arm.name());
    let (steps, prompts, samples) = size.rl;
    let mut flags = format!(
        "{} --policy {} --output {} {} --seed {seed} --steps {steps} --prompts {prompts} --samples {samples} \
         --eval-every {} --eval-questions {} --eval-samples {} --max-new-tokens {} --warmup 3 --best {} {}",
        arm.algorithm,
        shop.arg("policy/model"),
        shop.arg(&name),
        events(at),
        size.eval_every,
        size.questions.0,
        size.questions.2,
        size.longest,
        arm.rates(),
        arm.judge.flags,
    );
    if let Some(model) = arm.judge.model {
        flags += &format!(" --reward-url {url} --reward-model {model}");
        if arm.algorithm == "ppo" {
            flags += &format!(" --critic {}", checkpoint(shop, model));
        }
    }
    shop.stage("qrm-rl", &format!("{name}/model"), &flags)
}

/// How good a policy is on the test problems.
pub(super) fn test(shop: &Workshop, size: &Size, at: (usize, usize), policy: &str, to: &str) -> Stage {
    let flags = format!(
        "evaluate --policy {} {} --split test --questions {} --samples {} --max-new-tokens {}",
        shop.arg(policy),
        events(at),
        size.questions.1,
        size.questions.2,
        size.longest,
    );
    shop.stage("qrm-rl", to, &flags).prints()
}

//! The experiment as commands.

use super::judges::{Arm, Judge, served};
use super::size::Size;
use super::stage::{Stage, Workshop};

/// All up to the reward models, in rounds: the stages of a round need those before it and not one another.
pub(super) fn models(shop: &Workshop, size: &Size, judges: &[Judge]) -> [Vec<Stage>; 4] {
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
    let sample = |name: &str, flags: &str| {
        data(name, &format!("sample --model {policy} --samples 8 --max-new-tokens {} {flags}", size.longest))
    };
    let (problems, checked) = (size.sampled.0, size.sampled.0.div_ceil(10));
    let mut sampled = vec![
        train(
            "backbone",
            "sft",
            &format!("{sft} --model {policy} --steps {} --warmup 0.03 --seed 2", size.sft.1),
        ),
        sample("pairs.jsonl", &format!("--problems {problems} --pairs 4 {}", size.pairs)),
        sample(
            "validation.jsonl",
            &format!("--split validation --problems {checked} --pairs 1 {}", size.pairs),
        ),
    ];
    let served = served(judges);
    if served.contains(&"prm") {
        sampled.push(sample("steps.jsonl", &format!("--rows steps --problems {}", size.sampled.1)));
    }
    let from =
        |times: usize| format!("--model {backbone} --steps {} --eval-every 100", times * size.rm_steps);
    let pairs = format!("--batch 32 --train {pairs} --eval {} --best", shop.arg("validation.jsonl"));
    let (on_pairs, longer) = (format!("{} {pairs}", from(1)), format!("{} {pairs}", from(3)));
    let reward_models = [
        ("qrm", "qrm", format!("{on_pairs} --head vocab --beta 10 --gamma 1 --sft-weight 5 --lr 1e-4")),
        // One number an answer is learnt slowest, by a head that starts from noise.
        ("orm", "orm", format!("{longer} --lr 3e-4")),
        ("dpo", "dpo", format!("{on_pairs} --lr 1e-4")),
        ("prm", "prm", format!("{} --batch 64 --train {steps} --lr 3e-4", from(1))),
        ("qrm-scalar", "qrm", format!("{on_pairs} --head scalar --beta 10 --gamma 1 --lr 3e-4")),
    ];
    let reward_models = reward_models
        .iter()
        .filter(|(model, ..)| served.contains(model))
        .map(|(model, kind, flags)| train(&format!("rm/{model}"), kind, flags))
        .collect();
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
         --eval-every {} --eval-questions {} --eval-samples {} --max-new-tokens {} --warmup 3 --best --save-every {} \
         --resume {} {}",
        arm.algorithm,
        shop.arg("policy/model"),
        shop.arg(&name),
        events(at),
        size.eval_every,
        size.questions.0,
        size.questions.2,
        size.longest,
        size.eval_every,
        arm.rates(),
        arm.judge.flags,
    );
    if let Some(model) = arm.judge.model {
        flags += &format!(" --reward-model {model}");
        if arm.algorithm == "ppo" {
            flags += &format!(" --critic {}", checkpoint(shop, model));
        }
    }
    shop.stage("qrm-rl", &format!("{name}/model"), &flags).asks(url)
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

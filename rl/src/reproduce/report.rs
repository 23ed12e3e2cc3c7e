//! `RESULTS.md` and its plots.

use std::fmt::Write;

use serde_json::Value;

use super::results::{Part, Results, Trained, rows};
use super::size::Size;
use super::stage::Workshop;
use crate::plots::curves::{Axes, Line};
use crate::plots::heatmap::Row;
use crate::plots::{curves, heatmap, histogram};
use crate::signal::moments;

/// Writes what there is, of these reward models.
pub(super) fn write(shop: &Workshop, size: &Size, models: &[&str], results: &Results) -> anyhow::Result<()> {
    std::fs::create_dir_all(shop.path("plots"))?;
    let mut text = String::from("# Results\n\nWritten by `qrm-rl reproduce`.\n");
    for part in results.parts.iter().filter(|part| part.arms.iter().any(|t| !t.tests.is_empty())) {
        table(&mut text, part, size)?;
        for algorithm in ["reinforce", "ppo"] {
            learning_curves(&mut text, shop, size, part, algorithm)?;
        }
        passes(&mut text, shop, part)?;
    }
    reward_models(&mut text, shop, models)?;
    looks(&mut text, shop, models)?;
    costs(&mut text, shop, results)?;
    Ok(std::fs::write(shop.path("RESULTS.md"), text)?)
}

/// `62.1 ± 1.3`, in points.
fn points(seeds: &[f32]) -> String {
    let (mean, std) = moments(seeds.iter());
    match seeds.len() {
        0 => "–".into(),
        1 => format!("{:.1}", 100.0 * mean),
        _ => format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std),
    }
}

fn table(text: &mut String, part: &Part, size: &Size) -> anyhow::Result<()> {
    let (steps, answers) = (size.steps(), size.answers_of_a_step());
    writeln!(text, "\n## {}\n", part.stories.replace("stories", "Stories"))?;
    writeln!(
        text,
        "{steps} steps of {answers} answers; the policy of the best validation is kept and tested on held-out problems. Mean ± \
         standard deviation over seeds. Margin: points of Pass@1 over ORM with the same algorithm. Steps: the first at which \
         the validation curve is where ORM's is at its best. Last: validation after the last step.\n"
    )?;
    writeln!(
        text,
        "| | reward | Pass@1 | greedy | Pass@{} | margin | steps | last | KL | waiting | seeds |",
        size.samples()
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|")?;
    let figure =
        |name: &str| part.before[name].as_f64().map_or("–".into(), |x| format!("{:.1}", 100.0 * x));
    let most = format!("pass_at_{}", size.samples());
    let before = [figure("pass_at_1"), figure("greedy_pass_at_1"), figure(&most)];
    writeln!(text, "| SFT | | {} | {} | {} | | | | | | |", before[0], before[1], before[2])?;
    for trained in part.arms.iter().filter(|t| !t.tests.is_empty()) {
        let outcome = part.outcome(trained.arm.algorithm);
        let mean = |t: &Trained| moments(t.test("pass_at_1").iter()).0;
        let margin = outcome.map_or("".into(), |orm| format!("{:+.1}", 100.0 * (mean(trained) - mean(orm))));
        let steps = outcome.and_then(Trained::best).map_or("".into(), |goal| {
            trained.reaches(goal).map_or("not reached".into(), |step| step.to_string())
        });
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {margin} | {steps} | {} | {:.3} | {:.1} % | {} |",
            trained.arm.algorithm.to_uppercase(),
            trained.arm.judge.label,
            points(&trained.test("pass_at_1")),
            points(&trained.test("greedy_pass_at_1")),
            points(&trained.test(&most)),
            points(trained.last()),
            moments(trained.kl.iter()).0,
            100.0 * moments(trained.waiting.iter()).0,
            trained.tests.len(),
        )?;
    }
    Ok(())
}

/// The paper's Figure 3a.
fn learning_curves(
    text: &mut String,
    shop: &Workshop,
    size: &Size,
    part: &Part,
    algorithm: &str,
) -> anyhow::Result<()> {
    let is_shown = |t: &&Trained| t.arm.algorithm == algorithm && !t.curve.is_empty();
    let line = |t: &Trained| Line {
        name: t.arm.judge.label.into(),
        points: t.curve.iter().map(|(step, seeds)| (*step as f64, seeds.clone())).collect(),
    };
    let lines: Vec<Line> = part.arms.iter().filter(is_shown).map(line).collect();
    let title = format!("{}, {}", algorithm.to_uppercase(), part.stories);
    let x = format!("steps of {} answers", size.answers_of_a_step());
    let axes = Axes { title: &title, x: &x, y: "Pass@1, validation", log_x: false };
    let file = format!("plots/{algorithm}-{}.svg", part.difficulty);
    curves::draw(&shop.path(&file), axes, &lines)?;
    Ok(writeln!(text, "\n![{title}: Pass@1 by step]({file})")?)
}

/// The paper's Figure 2c: Pass@N of what REINFORCE made.
fn passes(text: &mut String, shop: &Workshop, part: &Part) -> anyhow::Result<()> {
    let line = |name: &str, tests: &[&Value]| Line {
        name: name.into(),
        points: (0..)
            .map(|i| 1usize << i)
            .map_while(|k| {
                let of = |test: &&Value| test[format!("pass_at_{k}")].as_f64().map(|x| x as f32);
                let seeds: Vec<f32> = tests.iter().filter_map(of).collect();
                (!seeds.is_empty()).then_some((k as f64, seeds))
            })
            .collect(),
    };
    let mut lines = vec![line("SFT", &[&part.before])];
    for t in part.arms.iter().filter(|t| t.arm.algorithm == "reinforce" && !t.tests.is_empty()) {
        lines.push(line(t.arm.judge.label, &t.tests.iter().collect::<Vec<_>>()));
    }
    let title = format!("Pass@N after REINFORCE, {}", part.stories);
    let axes = Axes { title: &title, x: "N", y: "Pass@N, test", log_x: true };
    let file = format!("plots/pass-at-n-{}.svg", part.difficulty);
    curves::draw(&shop.path(&file), axes, &lines)?;
    Ok(writeln!(text, "\n![{title}]({file})")?)
}

/// How well the models tell right answers from wrong ones.
fn reward_models(text: &mut String, shop: &Workshop, models: &[&str]) -> anyhow::Result<()> {
    writeln!(text, "\n## The reward models\n")?;
    writeln!(text, "| | of pairs told apart | answers (AUC) | answers to one question |\n|---|---|---|---|")?;
    for model in models {
        let metrics = rows(&shop.path(&format!("rm/{model}/metrics.jsonl"))).unwrap_or_default();
        let best = metrics
            .iter()
            .filter_map(|row| row["eval/accuracy"].as_f64())
            .fold(None, |best, x| Some(best.map_or(x, |best: f64| best.max(x))));
        let best = best.map_or("–".into(), |x| format!("{x:.3}"));
        let looks = looked(shop, &format!("before-{model}"))?;
        let (all, one) = (auc(&looks, |_, _| true), auc(&looks, |a, b| a.prompt == b.prompt));
        writeln!(text, "| {model} | {best} | {all:.3} | {one:.3} |")?;
    }
    Ok(writeln!(
        text,
        "\nPairs: of the validation problems, as training measures them. AUC: a right and a wrong answer of the policy, to any \
         questions and to the same one, by the mean of their rewards."
    )?)
}

/// An answer with its tokens' rewards.
struct Look {
    prompt: String,
    is_right: bool,
    tokens: Vec<String>,
    rewards: Vec<f32>,
}

impl Look {
    /// Its mean reward.
    fn score(&self) -> f32 {
        moments(self.rewards.iter()).0 as f32
    }
}

fn looked(shop: &Workshop, name: &str) -> anyhow::Result<Vec<Look>> {
    let of = |row: Value| -> anyhow::Result<Look> {
        Ok(Look {
            prompt: row["messages"][0]["content"].as_str().unwrap_or_default().into(),
            is_right: row["is_right"].as_bool().unwrap_or_default(),
            tokens: serde_json::from_value(row["tokens"].clone())?,
            rewards: serde_json::from_value(row["rewards"].clone())?,
        })
    };
    rows(&shop.path(&format!("looks/{name}.jsonl")))?.into_iter().map(of).collect()
}

/// How often a right answer has the higher score than a wrong one, of those that are compared.
fn auc(looks: &[Look], compared: impl Fn(&Look, &Look) -> bool) -> f64 {
    let (right, wrong): (Vec<&Look>, Vec<&Look>) = looks.iter().partition(|look| look.is_right);
    let (mut sum, mut pairs) = (0.0, 0usize);
    for right in &right {
        for wrong in wrong.iter().filter(|wrong| compared(right, wrong)) {
            let (r, w) = (right.score(), wrong.score());
            sum += if r == w { 0.5 } else { f64::from(u8::from(r > w)) };
            pairs += 1;
        }
    }
    sum / pairs.max(1) as f64
}

/// The paper's Figures 1 and 5.
fn looks(text: &mut String, shop: &Workshop, models: &[&str]) -> anyhow::Result<()> {
    writeln!(text, "\n## What the rewards look like")?;
    let shown = [("qrm", "mean log φ of an answer"), ("orm", "mean reward of an answer")];
    for (model, unit) in shown.into_iter().filter(|(model, _)| models.contains(model)) {
        let scores = |looks: Vec<Look>| looks.iter().map(Look::score).collect::<Vec<f32>>();
        let mut sets = vec![("before".to_owned(), scores(looked(shop, &format!("before-{model}"))?))];
        for algorithm in ["reinforce", "ppo"] {
            let after = scores(looked(shop, &format!("after-{algorithm}-{model}"))?);
            sets.push((format!("after {}", algorithm.to_uppercase()), after));
        }
        let title = format!("Rewards of {model} before and after training with it");
        let file = format!("plots/rewards-{model}.svg");
        histogram::draw(&shop.path(&file), &title, unit, &sets)?;
        writeln!(text, "\n![{title}]({file})")?;
    }
    let all = models.iter().map(|m| Ok((*m, looked(shop, &format!("before-{m}"))?)));
    let all: Vec<(&str, Vec<Look>)> = all.collect::<anyhow::Result<_>>()?;
    let Some((_, first)) = all.first() else { return Ok(()) };
    for (name, is_right) in [("right", true), ("wrong", false)] {
        // Of a question that has both, where there is one.
        let has_both = |look: &Look| {
            first.iter().any(|other| other.prompt == look.prompt && other.is_right != look.is_right)
        };
        let places = || (0..first.len()).filter(|i| first[*i].is_right == is_right);
        let Some(at) = places().find(|i| has_both(&first[*i])).or_else(|| places().next()) else { continue };
        let row = |(model, looks): &(&str, Vec<Look>)| {
            let look = looks.get(at)?;
            Some(Row { name: (*model).into(), tokens: look.tokens.clone(), rewards: look.rewards.clone() })
        };
        let title = format!("A {name} answer: {}", first[at].prompt);
        let file = format!("plots/tokens-{name}.svg");
        heatmap::draw(&shop.path(&file), &title, &all.iter().filter_map(row).collect::<Vec<_>>())?;
        writeln!(text, "\n![A {name} answer, token by token]({file})")?;
    }
    Ok(())
}

/// Wall time, machine, waiting.
fn costs(text: &mut String, shop: &Workshop, results: &Results) -> anyhow::Result<()> {
    let took = shop.took()?;
    let (mut runs, mut looks, mut others) = (Vec::new(), 0.0, Vec::new());
    for took in &took {
        match &took.stage {
            stage if stage.contains("-events/") => runs.push(took),
            stage if stage.starts_with("looks/") => looks += took.seconds,
            _ => others.push(took),
        }
    }
    let policies = runs.iter().filter(|took| !took.stage.ends_with(".json")).count();
    let waiting = results.parts.iter().flat_map(|p| &p.arms).flat_map(|t| &t.waiting);
    let most = waiting.copied().fold(0.0, f32::max);
    writeln!(text, "\n## Cost\n\n| stage | minutes |\n|---|---|")?;
    for took in &others {
        writeln!(text, "| {} | {:.1} |", took.stage, took.seconds / 60.0)?;
    }
    writeln!(
        text,
        "| {policies} policies and their tests | {:.1} |",
        runs.iter().map(|took| took.seconds).sum::<f64>() / 60.0
    )?;
    writeln!(text, "| answers judged for the plots | {:.1} |", looks / 60.0)?;
    let sum: f64 = took.iter().map(|t| t.seconds).sum();
    writeln!(text, "| **in all** | **{:.0}** |", sum / 60.0)?;
    writeln!(
        text,
        "\nThe longest share of a run that was spent waiting for rewards: {:.1} %.",
        100.0 * most
    )?;
    Ok(writeln!(text, "\n{}.", machine())?)
}

/// `16 × AMD EPYC, 64 GiB`.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let memory =
        field(&read("/proc/meminfo"), "MemTotal").and_then(|m| m.split(' ').next()?.parse::<f64>().ok());
    let memory = memory.map_or(String::new(), |kib| format!(", {:.0} GiB", kib / f64::from(1 << 20)));
    format!("{cores} × {cpu}{memory}")
}

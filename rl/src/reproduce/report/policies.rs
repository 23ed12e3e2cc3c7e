//! What became of the policies: the table, and their Pass@1 by step and Pass@N as curves.

use std::fmt::Write;

use qrm_model::reward::Stats;
use serde_json::Value;

use super::super::results::{Part, Trained};
use super::super::size::Size;
use super::super::stage::Workshop;
use crate::plots::curves;
use crate::plots::curves::{Axes, Line};
use crate::signal::spread;

/// `62.1 ± 1.3`, in points.
fn points(seeds: &[f32]) -> String {
    let (mean, std) = spread(seeds);
    match seeds.len() {
        0 => "–".into(),
        1 => format!("{:.1}", 100.0 * mean),
        _ => format!("{:.1} ± {:.1}", 100.0 * mean, 100.0 * std),
    }
}

pub(super) fn table(text: &mut String, part: &Part, size: &Size) -> anyhow::Result<()> {
    let (steps, answers) = (size.steps(), size.answers_of_a_step());
    writeln!(text, "\n## {}\n", part.stories.replace("stories", "Stories"))?;
    writeln!(
        text,
        "{steps} steps of {answers} answers; the policy of the best validation is kept and tested on held-out problems. Mean ± \
         standard deviation over seeds of the policy's RL training alone: the policy it starts from, the backbone and each \
         reward model were trained once. Margin: points of Pass@1 over ORM with the same algorithm. Steps: the first at \
         which the validation curve is where ORM's is at its best. Last: validation after the last step. Way: mean \
         |log π − log π_SFT| of a token as that step begins.\n"
    )?;
    writeln!(
        text,
        "| | reward | Pass@1 | greedy | Pass@{} | margin | steps | last | way | waiting | seeds |",
        size.samples()
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|---|---|---|")?;
    let most = format!("pass_at_{}", size.samples());
    for (name, test) in [("SFT", &part.before), ("backbone of the reward models", &part.backbone)] {
        let figure = |name: &str| test[name].as_f64().map_or("–".into(), |x| format!("{:.1}", 100.0 * x));
        let [one, greedy, many] = ["pass_at_1", "greedy_pass_at_1", &most].map(figure);
        writeln!(text, "| {name} | | {one} | {greedy} | {many} | | | | | | |")?;
    }
    for trained in part.arms.iter().filter(|t| !t.tests.is_empty()) {
        let outcome = part.outcome(trained.arm.algorithm).filter(|orm| !orm.tests.is_empty());
        let mean = |t: &Trained| Stats::of(t.test("pass_at_1").iter()).mean;
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
            Stats::of(trained.way.iter()).mean,
            100.0 * Stats::of(trained.waiting.iter()).mean,
            trained.tests.len(),
        )?;
    }
    Ok(())
}

/// The paper's Figure 3a.
pub(super) fn learning_curves(
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
pub(super) fn passes(text: &mut String, shop: &Workshop, part: &Part) -> anyhow::Result<()> {
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

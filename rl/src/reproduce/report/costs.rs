//! What it took.

use std::fmt::Write;

use super::super::results::Results;
use super::super::stage::Workshop;

/// Time of the commands, machine, waiting.
pub(super) fn costs(text: &mut String, shop: &Workshop, results: &Results) -> anyhow::Result<()> {
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
    writeln!(
        text,
        "\n## Cost\n\nOf commands, several of which ran side by side.\n\n| stage | minutes |\n|---|---|"
    )?;
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

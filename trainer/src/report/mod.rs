//! What a run tells: a progress bar, `metrics.jsonl`, TensorBoard events.

mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use tensorboard::Events;

/// The reports of one run.
pub struct Report {
    jsonl: File,
    events: Events,
    bar: ProgressBar,
}

impl Report {
    /// Opens the reports in `dir`. What an earlier try wrote of steps from `first` on is dropped: those are done again.
    pub fn open(dir: &Path, first: usize, steps: usize) -> io::Result<Self> {
        let path = dir.join("metrics.jsonl");
        let kept = kept_lines(&path, first)?;
        let mut jsonl = OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
        for line in kept {
            writeln!(jsonl, "{line}")?;
        }
        let bar = ProgressBar::new(steps as u64).with_position(first as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} · {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_secs(1));
        bar.reset_eta();
        Ok(Self { jsonl, events: Events::create(&dir.join("tensorboard"))?, bar })
    }

    /// Records some numbers of a step under `group/` (`train`, `eval`).
    pub fn numbers(&mut self, step: usize, group: &str, numbers: &[(&str, f64)]) -> io::Result<()> {
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        for (name, value) in numbers {
            row.insert(format!("{group}/{name}"), json!(value));
        }
        writeln!(self.jsonl, "{}", Value::Object(row))?;
        let tagged: Vec<_> = numbers.iter().map(|(n, v)| (format!("{group}/{n}"), *v as f32)).collect();
        self.events.scalars(step, &tagged)
    }

    /// Moves the bar.
    pub fn progress(&self, step: usize, message: String) {
        self.bar.set_position(step as u64);
        self.bar.set_message(message);
    }

    /// A line above the bar; on stderr too where there is no terminal.
    pub fn say(&self, line: &str) {
        match self.bar.is_hidden() {
            true => eprintln!("{line}"),
            false => self.bar.println(line),
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The lines of steps before `first`; a last line cut short by a kill is dropped.
fn kept_lines(path: &Path, first: usize) -> io::Result<Vec<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let step = serde_json::from_str::<Value>(&line).ok().and_then(|row| row["step"].as_u64());
        if step.is_some_and(|step| step <= first as u64) && first > 0 {
            kept.push(line);
        }
    }
    Ok(kept)
}

//! The commands of the experiment, each done once: one that has left what it makes is not run again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Where everything is done and kept.
pub(super) struct Workshop {
    dir: PathBuf,
}

/// How long a command took; a line of `stages.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) stage: String,
    pub(super) seconds: f64,
}

/// A command of `qrm-trainer` or `qrm-rl`.
pub(super) struct Stage {
    name: String,
    program: &'static str,
    args: Vec<String>,
    makes: PathBuf,
    /// Standard output is what it makes.
    prints: bool,
}

impl Workshop {
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir.join("logs"))?;
        Ok(Self { dir: dir.canonicalize()? })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as a flag's value.
    pub(super) fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A stage that makes `makes` below the directory.
    pub(super) fn stage(&self, program: &'static str, makes: &str, args: &str) -> Stage {
        Stage {
            name: makes.trim_end_matches("/model").to_owned(),
            program,
            args: args.split_whitespace().map(str::to_owned).collect(),
            makes: self.path(makes),
            prints: false,
        }
    }

    /// Runs a stage that is not done; its words go to `logs/`.
    pub(super) fn run(&self, stage: Stage) -> anyhow::Result<()> {
        if stage.makes.exists() {
            return Ok(());
        }
        eprintln!("{}: {} {}", stage.name, stage.program, stage.args.join(" "));
        let (start, partial) = (Instant::now(), stage.makes.with_extension("partial"));
        if let Some(parent) = stage.makes.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let log = self.path("logs").join(stage.name.replace('/', "-"));
        let mut command = Command::new(program(stage.program)?);
        let writes_file = stage.args.iter().any(|arg| arg == "@");
        let out = |arg: String| if arg == "@" { partial.display().to_string() } else { arg };
        command.args(stage.args.into_iter().map(out)).stderr(File::create(&log)?);
        command.stdout(if stage.prints { File::create(&partial)?.into() } else { Stdio::null() });
        let status = command.status().with_context(|| stage.program)?;
        anyhow::ensure!(status.success(), "{} failed, see {}", stage.name, log.display());
        if stage.prints || writes_file {
            std::fs::rename(&partial, &stage.makes)?;
        }
        let took = Took { stage: stage.name, seconds: start.elapsed().as_secs_f64() };
        let mut file = OpenOptions::new().create(true).append(true).open(self.path("stages.jsonl"))?;
        Ok(writeln!(file, "{}", serde_json::to_string(&took)?)?)
    }

    /// What was run so far, and how long it took.
    pub(super) fn took(&self) -> anyhow::Result<Vec<Took>> {
        let text = std::fs::read_to_string(self.path("stages.jsonl")).unwrap_or_default();
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

impl Stage {
    /// What it prints is what it makes.
    pub(super) fn prints(self) -> Self {
        Self { prints: true, ..self }
    }
}

/// A binary of this workspace: it lies beside this one.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.exists(), "{} is not built: cargo build --release --workspace", path.display());
    Ok(path)
}

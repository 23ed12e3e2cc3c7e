//! The commands of the experiment, each done once: one that has left what it makes is not run again. Those that need nothing
//! of one another run side by side.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Where everything is done and kept.
pub(super) struct Workshop {
    dir: PathBuf,
    /// Commands that run side by side.
    jobs: usize,
}

/// What a command was and how long it took; a line of `stages.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Took {
    pub(super) stage: String,
    pub(super) seconds: f64,
    /// Its flags, wherever the directory is.
    #[serde(default)]
    pub(super) flags: Option<String>,
}

/// A command of `qrm-trainer` or `qrm-rl`.
pub(super) struct Stage {
    name: String,
    program: &'static str,
    args: Vec<String>,
    makes: PathBuf,
    /// Standard output is what it makes.
    prints: bool,
    /// Where its rewards are from.
    server: Option<String>,
}

impl Workshop {
    pub(super) fn new(dir: &Path, jobs: usize) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir.join("logs"))?;
        Ok(Self { dir: dir.canonicalize()?, jobs: jobs.max(1) })
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
            server: None,
        }
    }

    /// Runs lists of stages side by side, the stages of a list one after the other. The first error is what comes back, once
    /// the lists that were begun are at their end.
    pub(super) fn side_by_side(&self, lists: impl IntoIterator<Item = Vec<Stage>>) -> anyhow::Result<()> {
        let lists: Vec<Vec<Stage>> = lists.into_iter().collect();
        let jobs = self.jobs.min(lists.len()).max(1);
        let threads = (cores() / jobs).max(1);
        let lists = Mutex::new(lists.into_iter());
        let next = || lists.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || -> anyhow::Result<()> {
            while let Some(list) = next() {
                if let Err(error) = list.into_iter().try_for_each(|stage| self.run_on(threads, stage)) {
                    while next().is_some() {} // nothing more is begun
                    return Err(error);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            let mut ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended.try_for_each(|end| end.unwrap_or_else(|_| anyhow::bail!("a stage panicked")))
        })
    }

    /// Runs a stage that is not done, with all cores; its words go to `logs/`.
    pub(super) fn run(&self, stage: Stage) -> anyhow::Result<()> {
        self.run_on(cores(), stage)
    }

    fn run_on(&self, threads: usize, stage: Stage) -> anyhow::Result<()> {
        let flags = stage.args.join(" ").replace(&self.arg(""), "");
        if stage.makes.exists() {
            let made = self.took()?.into_iter().rev().find(|took| took.stage == stage.name);
            let Some(others) = made.and_then(|took| took.flags).filter(|made| *made != flags) else {
                return Ok(());
            };
            anyhow::bail!(
                "{} was made with {others}, now wanted with {flags}: remove it, or name another --output",
                stage.name
            );
        }
        eprintln!("{}: {} {}", stage.name, stage.program, stage.args.join(" "));
        let (start, partial) = (Instant::now(), stage.makes.with_extension("partial"));
        if let Some(parent) = stage.makes.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let log = self.path("logs").join(stage.name.replace('/', "-"));
        let mut command = Command::new(program(stage.program)?);
        command.env("RAYON_NUM_THREADS", threads.to_string());
        command.envs(stage.server.map(|url| ("QRM_REWARD_URL", url)));
        let writes_file = stage.args.iter().any(|arg| arg == "@");
        let out = |arg: String| if arg == "@" { partial.display().to_string() } else { arg };
        command.args(stage.args.into_iter().map(out)).stderr(File::create(&log)?);
        command.stdout(if stage.prints { File::create(&partial)?.into() } else { Stdio::null() });
        let status = command.status().with_context(|| stage.program)?;
        anyhow::ensure!(status.success(), "{} failed, see {}", stage.name, log.display());
        if stage.prints || writes_file {
            std::fs::rename(&partial, &stage.makes)?;
        }
        let took = Took { stage: stage.name, seconds: start.elapsed().as_secs_f64(), flags: Some(flags) };
        let mut file = OpenOptions::new().create(true).append(true).open(self.path("stages.jsonl"))?;
        // In one write: another stage may end at the same time.
        Ok(file.write_all(format!("{}\n", serde_json::to_string(&took)?).as_bytes())?)
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

    /// Its rewards are those of a server; not a flag, as every start of the experiment has another.
    pub(super) fn asks(self, url: &str) -> Self {
        Self { server: Some(url.into()), ..self }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A binary of this workspace: it lies beside this one.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    anyhow::ensure!(path.exists(), "{} is not built: cargo build --release --workspace", path.display());
    Ok(path)
}

//! `qrm-server score`: the same engine offline, JSONL in, JSONL out.
//!
//! Two passes over the input: the first checks every row, so that a bad one is reported before hours of compute; the
//! second scores. Rows are written in order, each in one write, so what a killed run leaves is all but its last row. [`job`]:
//! what an output was made of.

mod job;

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qrm_model::{RewardModel, Trajectory};
use qrm_proto::{Input, RewardsRequest};
use serde_json::Value;

use crate::config::EngineArgs;
use crate::engine::{Engine, Terms, Ticket};
use crate::metrics::Metrics;
use crate::model;
use crate::request::answer::Pending;
use crate::request::{Bounds, Prepared, prepare};
use job::{Job, Lines};

/// Exit status of an input with a bad row.
const BAD_ROW: u8 = 2;

#[derive(Debug, Clone, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Checkpoint directory or hub id; default: the built-in one.
    #[arg(long, env = "QRM_MODEL")]
    model: Option<String>,
    /// JSONL: each row one input of the HTTP request, with an id.
    #[arg(long)]
    input: PathBuf,
    /// JSONL: one answer object per trajectory. Ids already in it are skipped.
    #[arg(long)]
    output: PathBuf,
    /// Reward to give; default: what the model was trained for.
    #[arg(long)]
    reward: Option<String>,
    /// Extra fields per trajectory, comma-separated, as in the HTTP request's `include`.
    #[arg(long, value_delimiter = ',')]
    include: Vec<String>,
    /// Appends the checkpoint's end-of-sequence token to every response.
    #[arg(long)]
    append_eos: bool,
    /// Drops prompt tokens from the left until the trajectory fits the context.
    #[arg(long)]
    truncate_prompt: bool,
}

/// Scores the file; exit status 2 and a line number for a bad row.
pub(crate) fn run(args: ScoreArgs) -> anyhow::Result<ExitCode> {
    let devices = args.engine.devices()?;
    let copies = model::load(args.model.as_deref(), None, &devices)?;
    let model = copies.first.model.clone();
    let before = Job::read(&args.output)?;
    let plan = match check(&args, &model, before.as_ref().map_or(0, |job| job.rows))? {
        Ok(plan) => plan,
        Err(bad) => {
            tracing::error!("{}: {bad}", args.input.display());
            return Ok(ExitCode::from(BAD_ROW));
        }
    };
    let job = |rows, input| Job::new(&args, &model, &devices, rows, input);
    let (output, done) = claim(&args.output, &plan, before, job)?;
    let limits = args.engine.limits(usize::MAX, usize::MAX);
    let engine = Engine::start(&copies, limits, Metrics::new()?)?;
    let terms = Terms { client: "".into(), priority: 0, deadline: None };
    let bar = progress(plan.rows[done..].iter().map(|r| r.tokens as u64).sum());
    let mut writer = Writer { model: &model, output, bar };
    let mut in_flight: VecDeque<(Row, Pending, Ticket)> = VecDeque::new();
    let mut waiting = 0;
    let mut rows = plan.rows.iter();
    for (number, line) in lines(&args)?.enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let Some(row) = rows.next() else { anyhow::bail!("the input changed while it was scored") };
        if row.index < done {
            continue;
        }
        let prepared = read(&line, number + 1, &args, &model).map_err(anyhow::Error::msg)?.1;
        let (trajectories, pending) = prepared.split();
        waiting += row.tokens;
        in_flight.push_back((*row, pending, engine.submit(trajectories, terms.clone())?));
        // Enough to fill the next batches while the worker computes, and no more in memory.
        while waiting as f64 > 8.0 * engine.budget() {
            let Some((row, pending, ticket)) = in_flight.pop_front() else { break };
            waiting -= row.tokens;
            writer.write(row, pending, ticket)?;
        }
    }
    anyhow::ensure!(
        rows.next().is_none(),
        "the input changed while it was scored; a pipe cannot be read twice"
    );
    for (row, pending, ticket) in in_flight {
        writer.write(row, pending, ticket)?;
    }
    writer.output.sync_all()?;
    writer.bar.finish();
    Ok(ExitCode::SUCCESS)
}

/// Opens the output of a job, and says how many of its rows are there. `before` is the job that began it.
fn claim(
    path: &Path,
    plan: &Plan,
    before: Option<Job>,
    job: impl Fn(usize, Lines) -> Job,
) -> anyhow::Result<(File, usize)> {
    let mut output = OpenOptions::new().create(true).truncate(false).write(true).read(true).open(path)?;
    if output.metadata()?.len() > 0 {
        let same = plan.before.clone().map(|(rows, input)| job(rows, input));
        anyhow::ensure!(
            before.is_some() && before == same,
            "{} was scored from another input, with another checkpoint or with other options: remove it to begin anew",
            path.display()
        );
    }
    let job = job(plan.rows.len(), plan.input.clone());
    if before.as_ref() != Some(&job) {
        job.write(path)?;
    }
    let done = resume(&mut output, &plan.rows, &plan.by_id);
    let done = done.with_context(|| format!("cannot resume {}", path.display()))?;
    if done > 0 {
        tracing::info!(rows = done, "already in the output");
    }
    Ok((output, done))
}

/// What the first pass learns of a row.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Among rows.
    index: usize,
    /// Number of its first trajectory among all.
    first: usize,
    /// Its trajectories.
    count: usize,
    /// P + T over them.
    tokens: usize,
}

struct Plan {
    rows: Vec<Row>,
    by_id: HashMap<String, usize>,
    /// Of all rows, and of as many as there were when the output was begun.
    input: Lines,
    before: Option<(usize, Lines)>,
}

/// Reads every row. The inner error is a bad row's, with its line number.
fn check(args: &ScoreArgs, model: &RewardModel, before: usize) -> anyhow::Result<Result<Plan, String>> {
    let mut plan = Plan { rows: Vec::new(), by_id: HashMap::new(), input: Lines::default(), before: None };
    let mut first = 0;
    for (number, line) in lines(args)?.enumerate() {
        let line = line.with_context(|| format!("line {}", number + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let (id, prepared) = match read(&line, number + 1, args, model) {
            Ok(row) => row,
            Err(bad) => return Ok(Err(bad)),
        };
        let index = plan.rows.len();
        if plan.by_id.insert(id.to_string(), index).is_some() {
            return Ok(Err(format!("line {}: the id {id} appears twice", number + 1)));
        }
        let tokens = prepared.trajectories.iter().map(Trajectory::len).sum();
        plan.rows.push(Row { index, first, count: prepared.trajectories.len(), tokens });
        first += prepared.trajectories.len();
        plan.input.add(line.trim());
        if plan.rows.len() == before {
            plan.before = Some((before, plan.input.clone()));
        }
    }
    Ok(Ok(plan))
}

/// One row as the request it stands for; a row without an id goes by its line number.
fn read(
    line: &str,
    number: usize,
    args: &ScoreArgs,
    model: &RewardModel,
) -> Result<(Value, Prepared), String> {
    let input: Input = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
    let id = input.id.clone().unwrap_or_else(|| Value::from(number));
    let request = RewardsRequest {
        inputs: vec![Input { id: Some(id.clone()), ..input }],
        reward: args.reward.clone(),
        include: args.include.clone(),
        append_eos: args.append_eos,
        truncate_prompt: args.truncate_prompt,
        ..RewardsRequest::default()
    };
    let bounds = Bounds { trajectories: usize::MAX, tokens: usize::MAX };
    let prepared = prepare(request, model, bounds).map_err(|e| {
        let param = e.param.as_deref().unwrap_or_default();
        format!("line {number}: {}: {e}", param.strip_prefix("inputs[0].").unwrap_or(param))
    })?;
    Ok((id, prepared))
}

fn lines(args: &ScoreArgs) -> anyhow::Result<std::io::Lines<BufReader<File>>> {
    let file = File::open(&args.input).with_context(|| args.input.display().to_string())?;
    Ok(BufReader::new(file).lines())
}

/// Rows that an earlier run finished. What it left of a row is cut off, and the file stands at its end.
fn resume(output: &mut File, rows: &[Row], by_id: &HashMap<String, usize>) -> anyhow::Result<usize> {
    let mut reader = BufReader::new(&mut *output);
    let (mut done, mut kept, mut at, mut of_row) = (0, 0, 0u64, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let Ok(datum) = serde_json::from_slice::<Value>(&line) else { break };
        match by_id.get(&datum["id"].to_string()) {
            Some(index) if *index == done => {}
            _ => anyhow::bail!(
                "row {} is not the input's next one; was another input scored into it?",
                done + 1
            ),
        }
        at += line.len() as u64;
        of_row += 1;
        if of_row == rows[done].count {
            (done, kept, of_row) = (done + 1, at, 0);
        }
    }
    output.set_len(kept)?;
    std::io::Seek::seek(output, std::io::SeekFrom::Start(kept))?;
    Ok(done)
}

struct Writer<'a> {
    model: &'a RewardModel,
    output: File,
    bar: ProgressBar,
}

impl Writer<'_> {
    /// Waits for a row's scores and writes its lines.
    fn write(&mut self, row: Row, pending: Pending, ticket: Ticket) -> anyhow::Result<()> {
        let scores = ticket.blocking_answer().with_context(|| format!("row {}", row.index + 1))?;
        let answer = pending.answer(scores, self.model, "", Duration::ZERO);
        let mut text = Vec::new();
        for mut datum in answer.data {
            datum.index += row.first;
            datum.input = row.index;
            serde_json::to_writer(&mut text, &datum)?;
            text.push(b'\n');
        }
        self.output.write_all(&text).context("the output cannot be written")?;
        self.bar.inc(row.tokens as u64);
        Ok(())
    }
}

/// Tokens done, tokens/s and time left; nothing where stderr is not a terminal.
fn progress(tokens: u64) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(tokens), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} tokens, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    bar
}

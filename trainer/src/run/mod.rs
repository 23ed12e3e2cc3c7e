//! The loop: steps of micro-batches, evaluation, saved states, and the finished model.
//!
//! - `args`: the flags that all training has in common.
//! - `evaluation`: what is measured on the way, and what is left at the end.

mod args;
mod evaluation;

use std::time::Instant;

use anyhow::{Context, bail};
use qrm_model::RewardModel;
use qrm_model::reward::HeadKind;
use qrm_model::training::Gradients;
use serde_json::{Value, json};

use crate::batches::{Order, within};
use crate::data::{self, Example, Format, Kind};
use crate::evaluate::{Evaluation, Score, score_all};
use crate::objective::{Objective, Outcome};
use crate::optimizer::{AdamW, Schedule, plain};
use crate::report::Report;
use crate::state::{Position, States};
use crate::workers::Workers;

pub use args::TrainArgs;

/// Everything a run is made of.
#[derive(Debug, Clone)]
pub struct Run {
    /// What all training has in common.
    pub args: TrainArgs,
    /// What the checkpoint becomes.
    pub head: HeadKind,
    /// The loss.
    pub objective: Objective,
    /// γ falls to 0 over the run.
    pub gamma_decay: bool,
    /// What preference accuracy compares.
    pub score: Score,
    /// What the rows are.
    pub kind: Kind,
    /// What ends a step, for serving a step-level model.
    pub step_separator: String,
}

impl Run {
    /// Trains, and writes the finished model to `output/model`: the first of the workers does, and gives the evaluation.
    pub fn run(&self, workers: &Workers) -> anyhow::Result<Option<Evaluation>> {
        let args = &self.args;
        let mut model = RewardModel::load_for_training(&args.model, self.head, &args.method(), args.seed)
            .with_context(|| format!("the checkpoint {} cannot be trained", args.model.display()))?;
        model.set_steps(&self.step_separator);
        let format = Format { kind: self.kind, append_eos: !args.no_append_eos };
        let mut train = data::load(&args.train, format, &model)?;
        let mut held_out = match &args.eval {
            Some(path) => data::load(path, format, &model)?,
            None => Vec::new(),
        };
        std::fs::create_dir_all(&args.output)?;
        if let Objective::Dpo(_) = self.objective {
            // B of an adapter starts at zero and a full model as itself: before the first step, the policy is π_ref.
            for examples in [&mut train, &mut held_out] {
                self.reference(&model, examples)?;
            }
        }
        Training::new(self, workers, model, train, held_out)?.run()
    }

    fn reference(&self, model: &RewardModel, examples: &mut [Example]) -> anyhow::Result<()> {
        for example in examples {
            let scores = score_all(model, &example.answers, self.args.micro_batch_tokens)?;
            example.reference = scores.iter().map(|s| Score::LogRatio.of(s, 0.0) as f32).collect();
        }
        Ok(())
    }

    /// What has to be the same for a run to go on.
    fn settings(&self, model: &RewardModel, examples: &[Example], batch: usize, steps: usize) -> Value {
        let args = &self.args;
        json!({
            "model": model.version(), "head": self.head.as_str(), "examples": data::checksum(examples),
            "objective": format!("{:?}", self.objective), "gamma_decay": self.gamma_decay,
            "method": format!("{:?}", args.method()), "seed": args.seed, "steps": steps,
            "batch": batch, "micro_batch_tokens": args.micro_batch_tokens, "lr": args.lr,
            "warmup": args.warmup, "decay": format!("{:?}", args.decay),
            "optimizer": format!("{:?}", args.optimizer()),
        })
    }
}

/// A run under way.
struct Training<'a> {
    run: &'a Run,
    workers: &'a Workers,
    model: RewardModel,
    train: Vec<Example>,
    held_out: Vec<Example>,
    order: Order,
    schedule: Schedule,
    optimizer: AdamW,
    states: States,
    position: Position,
    /// The first worker's.
    report: Option<Report>,
    evaluation: Option<Evaluation>,
}

/// What a step came to.
struct Step {
    loss: f64,
    outcome: Outcome,
    grad_norm: f64,
    lr: f64,
    tokens: usize,
}

impl<'a> Training<'a> {
    fn new(
        run: &'a Run,
        workers: &'a Workers,
        model: RewardModel,
        train: Vec<Example>,
        held_out: Vec<Example>,
    ) -> anyhow::Result<Self> {
        let args = &run.args;
        let batch = args.batch * workers.count();
        anyhow::ensure!(train.len() >= workers.count(), "fewer examples than processes");
        let order = Order::new(train.len(), batch, args.seed);
        let steps =
            args.steps.unwrap_or((args.epochs * order.steps_per_epoch() as f64).ceil() as usize).max(1);
        let warmup = (args.warmup * steps as f64).round() as usize;
        let schedule = Schedule { peak: args.lr, warmup, steps, decay: args.decay };
        let mut optimizer = AdamW::new(args.optimizer(), model.trained());
        let states = States::new(&args.output, args.keep);
        let settings = run.settings(&model, &train, batch, steps);
        let mut position = Position { step: 0, settings, best: None };
        if !args.resume {
            states.none_yet()?;
        } else if let Some(saved) = states.resume(&position.settings, &model, &mut optimizer)? {
            position = saved;
        }
        let report = match workers.rank() {
            0 => Some(Report::open(&args.output, position.step, steps)?),
            _ => None,
        };
        let training = Self {
            run,
            workers,
            model,
            train,
            held_out,
            order,
            schedule,
            optimizer,
            states,
            position,
            report,
            evaluation: None,
        };
        training.say(&format!(
            "{} of {} weights to train, {} examples, {steps} steps of {batch}{}{}",
            training.model.trained().elements(),
            training.model.parameters(),
            training.train.len(),
            if workers.count() > 1 { format!(" by {} processes", workers.count()) } else { String::new() },
            if training.position.step > 0 {
                format!(", from step {}", training.position.step)
            } else {
                String::new()
            }
        ));
        Ok(training)
    }

    fn leads(&self) -> bool {
        self.workers.rank() == 0
    }

    fn say(&self, line: &str) {
        if let Some(report) = &self.report {
            report.say(line);
        }
    }

    fn run(mut self) -> anyhow::Result<Option<Evaluation>> {
        let args = &self.run.args;
        if self.position.step == 0 {
            self.evaluate()?;
        }
        while self.position.step < self.schedule.steps {
            let start = Instant::now();
            let step = self.step().map_err(|e| self.stopped(e))?;
            self.position.step += 1;
            self.tell(&step, start.elapsed().as_secs_f64())?;
            let at = self.position.step;
            let last = at == self.schedule.steps;
            if last || (args.eval_every > 0 && at.is_multiple_of(args.eval_every)) {
                self.evaluate()?;
            }
            if self.leads() && args.save_every > 0 && (last || at.is_multiple_of(args.save_every)) {
                self.states.save(&self.model, &self.optimizer, &self.position)?;
            }
        }
        self.finish()
    }

    fn step(&mut self) -> anyhow::Result<Step> {
        let step = self.position.step;
        let lr = self.schedule.at(step);
        let objective = self.objective(step);
        let examples: Vec<&Example> = self.order.step(step).iter().map(|i| &self.train[*i]).collect();
        let (rank, workers) = (self.workers.rank(), self.workers.count());
        let mine = &examples[rank * examples.len() / workers..(rank + 1) * examples.len() / workers];
        let total: f64 = examples.iter().map(|e| objective.weight(e)).sum();
        let mut gradients = Gradients::new(self.model.trained());
        let (mut loss, mut outcome) = (0.0, Outcome::default());
        let args = &self.run.args;
        for places in within(mine.iter().map(|e| e.tokens()), args.micro_batch_tokens) {
            let micro = &mine[places];
            let batch: Vec<_> = micro.iter().flat_map(|e| e.answers.clone()).collect();
            let value = self.model.train(&batch, args.gradient_checkpointing, &mut gradients, |outputs| {
                let (loss, came_out) = objective.loss(micro, outputs, total)?;
                outcome.add(came_out);
                Ok(loss)
            })?;
            if !value.is_finite() {
                bail!("the loss is {value}");
            }
            loss += f64::from(value);
        }
        let mut gradients = plain(self.model.trained(), &gradients)?;
        self.workers.sum(&mut gradients);
        let mut sums = [loss, outcome.pairs as f64, outcome.right, outcome.margin];
        self.workers.sum_f64(&mut sums);
        let [loss, pairs, right, margin] = sums;
        let outcome = Outcome { pairs: pairs as usize, right, margin };
        let grad_norm = self.optimizer.step(self.model.trained(), &gradients, lr)?;
        Ok(Step { loss, outcome, grad_norm, lr, tokens: examples.iter().map(|e| e.tokens()).sum() })
    }

    fn objective(&self, step: usize) -> Objective {
        match self.run.objective {
            Objective::Qrm(mut p) if self.run.gamma_decay => {
                p.gamma *= 1.0 - step as f64 / self.schedule.steps as f64;
                Objective::Qrm(p)
            }
            other => other,
        }
    }

    /// What went wrong, and where the run can be taken up again.
    fn stopped(&self, error: anyhow::Error) -> anyhow::Error {
        let from = match self.states.newest() {
            Some(path) => format!("the last good state is {}; --resume goes on from it", path.display()),
            None => "no state was saved yet".into(),
        };
        if let Some(report) = &self.report {
            report.finish();
        }
        error.context(format!("stopped at step {}: {from}", self.position.step + 1))
    }

    fn tell(&mut self, step: &Step, seconds: f64) -> anyhow::Result<()> {
        let Some(report) = &mut self.report else { return Ok(()) };
        let speed = step.tokens as f64 / seconds;
        let mut numbers = vec![
            ("loss", step.loss),
            ("lr", step.lr),
            ("grad_norm", step.grad_norm),
            ("tokens_per_second", speed),
        ];
        let mut message = format!("loss {:.4}", step.loss);
        if step.outcome.pairs > 0 {
            let n = step.outcome.pairs as f64;
            numbers.extend([("accuracy", step.outcome.right / n), ("margin", step.outcome.margin / n)]);
            message += &format!(" · accuracy {:.3}", step.outcome.right / n);
        }
        message += &format!(" · {speed:.0} tokens/s");
        report.numbers(self.position.step, "train", &numbers)?;
        report.progress(self.position.step, message);
        Ok(())
    }
}

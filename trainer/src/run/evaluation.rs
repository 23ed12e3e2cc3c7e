//! What is measured on the way, and what is left at the end: the model, with its last evaluation.

use std::path::Path;

use super::Training;
use crate::evaluate::{Evaluation, evaluate};
use crate::export::{self, Card};
use crate::objective::Objective;

impl Training<'_> {
    pub(super) fn evaluate(&mut self) -> anyhow::Result<()> {
        let Some(report) = self.report.as_mut().filter(|_| !self.held_out.is_empty()) else { return Ok(()) };
        let run = self.run;
        let beta = match run.objective {
            Objective::Qrm(p) | Objective::Outcome(p) | Objective::Dpo(p) => p.beta,
            Objective::Sft | Objective::Step => 1.0,
        };
        let e = evaluate(&self.model, &self.held_out, run.score, beta, run.args.micro_batch_tokens)?;
        report.numbers(self.position.step, "eval", &e.numbers())?;
        let numbers: Vec<_> = e.numbers().iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
        report.say(&format!("step {}: {}", self.position.step, numbers.join(", ")));
        if run.args.best && self.position.best.is_none_or(|(_, quality)| e.quality() > quality) {
            self.position.best = Some((self.position.step, e.quality()));
            self.states.save_best(&self.model, &e)?;
        }
        self.evaluation = Some(e);
        Ok(())
    }

    pub(super) fn finish(mut self) -> anyhow::Result<Option<Evaluation>> {
        let run = self.run;
        let Some(report) = &self.report else { return Ok(None) };
        report.finish();
        if let Some((step, _)) = self.position.best
            && run.args.best
            && step != self.schedule.steps
        {
            self.say(&format!("the best evaluation was at step {step}: that model is kept"));
            self.states.restore_best(&self.model)?;
            self.evaluate()?;
        } else if self.evaluation.is_none() {
            self.evaluate()?; // taken up after its last step
        }
        let beta_gamma = match run.objective {
            Objective::Qrm(p) | Objective::Outcome(p) | Objective::Dpo(p) => Some((p.beta, p.gamma)),
            Objective::Sft | Objective::Step => None,
        };
        let card = Card {
            is_reward_model: run.objective != Objective::Sft,
            step_separator: run.step_separator.clone(),
            beta_gamma,
            evaluation: self.evaluation.clone(),
        };
        let to = run.args.output.join("model");
        export::write(&self.model, &run.args.method(), &run.args.model, &to, run.args.store, &card)?;
        self.say(&summary(&self.evaluation, &to));
        Ok(self.evaluation)
    }
}

/// The table that ends a run.
fn summary(evaluation: &Option<Evaluation>, to: &Path) -> String {
    let mut lines = vec![format!("{:<20} {}", "model", to.display())];
    for (name, value) in evaluation.iter().flat_map(Evaluation::numbers) {
        lines.push(format!("{name:<20} {value:>10.4}"));
    }
    lines.join("\n")
}

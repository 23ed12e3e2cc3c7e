//! Answers as the reward models judge them: how well right is told from wrong, rewards before and after, tokens.

use std::fmt::Write;
use std::path::PathBuf;

use qrm_model::reward::RewardKind;
use qrm_trainer::credit::{ahead, answer};
use serde_json::Value;

use super::super::results::rows;
use super::super::stage::Workshop;
use crate::plots::heatmap::Row;
use crate::plots::{heatmap, histogram};

/// How well the models tell right answers from wrong ones.
pub(super) fn reward_models(text: &mut String, shop: &Workshop, models: &[&str]) -> anyhow::Result<()> {
    writeln!(text, "\n## The reward models\n")?;
    writeln!(text, "| | of pairs told apart | answers (AUC) | answers to one question |\n|---|---|---|---|")?;
    for model in models {
        let metrics = rows(&shop.path(&format!("rm/{model}/metrics.jsonl"))).unwrap_or_default();
        let best = metrics
            .iter()
            .filter_map(|row| row["eval/accuracy"].as_f64())
            .fold(None, |best, x| Some(best.map_or(x, |best: f64| best.max(x))));
        let looks = looked(shop, &format!("before-{model}"))?;
        let (all, one) = (auc(&looks, |_, _| true), auc(&looks, |a, b| a.prompt == b.prompt));
        let [best, all, one] = [best, all, one].map(|x| x.map_or("–".into(), |x: f64| format!("{x:.3}")));
        writeln!(text, "| {model} | {best} | {all} | {one} |")?;
    }
    Ok(writeln!(
        text,
        "\nPairs: of the validation problems, at the evaluation that chose the model. AUC: a right and a wrong answer of the policy, to any \
         questions and to the same one, by what each kind of model compares: the mean of log φ, the sum of an outcome's and of \
         DPO's rewards, the least of the steps'."
    )?)
}

/// An answer with its tokens' rewards.
struct Look {
    prompt: String,
    is_right: bool,
    tokens: Vec<String>,
    reward: RewardKind,
    rewards: Vec<f32>,
}

impl Look {
    fn score(&self) -> f64 {
        answer(self.reward, &self.rewards)
    }
}

fn looked(shop: &Workshop, name: &str) -> anyhow::Result<Vec<Look>> {
    let of = |row: Value| -> anyhow::Result<Look> {
        Ok(Look {
            prompt: row["messages"][0]["content"].as_str().unwrap_or_default().into(),
            is_right: row["is_right"].as_bool().unwrap_or_default(),
            tokens: serde_json::from_value(row["tokens"].clone())?,
            reward: serde_json::from_value(row["reward"].clone())?,
            rewards: serde_json::from_value(row["rewards"].clone())?,
        })
    };
    rows(&path(shop, name))?.into_iter().map(of).collect()
}

fn path(shop: &Workshop, name: &str) -> PathBuf {
    shop.path(&format!("looks/{name}.jsonl"))
}

/// How often a right answer has the higher score than a wrong one, of those that are compared; none where no two are.
fn auc(looks: &[Look], compared: impl Fn(&Look, &Look) -> bool) -> Option<f64> {
    let (right, wrong): (Vec<&Look>, Vec<&Look>) = looks.iter().partition(|look| look.is_right);
    let (mut sum, mut pairs) = (0.0, 0usize);
    for right in &right {
        for wrong in wrong.iter().filter(|wrong| compared(right, wrong)) {
            sum += ahead(right.score(), wrong.score());
            pairs += 1;
        }
    }
    (pairs > 0).then(|| sum / pairs as f64)
}

/// The paper's Figures 1 and 5.
pub(super) fn looks(text: &mut String, shop: &Workshop, models: &[&str]) -> anyhow::Result<()> {
    writeln!(text, "\n## What the rewards look like")?;
    let shown = [("qrm", "mean log φ of an answer"), ("orm", "reward of an answer")];
    for (model, unit) in shown.into_iter().filter(|(model, _)| models.contains(model)) {
        let scores = |looks: Vec<Look>| looks.iter().map(|look| look.score() as f32).collect::<Vec<f32>>();
        let mut sets = vec![("before".to_owned(), scores(looked(shop, &format!("before-{model}"))?))];
        for algorithm in ["reinforce", "ppo"] {
            let after = format!("after-{algorithm}-{model}");
            // Without them where no policy has this model's default reward.
            if path(shop, &after).exists() {
                sets.push((format!("after {}", algorithm.to_uppercase()), scores(looked(shop, &after)?)));
            }
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

//! A loop of one's own: `reinforce POLICY URL STEPS OUTPUT`.

use std::path::Path;
use std::time::Duration;

use qrm_model::reward::Normalize;
use qrm_model::text::TextProcessor;
use qrm_rl::learner::Learner;
use qrm_rl::objective::reinforce;
use qrm_rl::rewards::{Asked, Rewards};
use qrm_rl::rollout::Sampler;
use qrm_rl::signal::normalize;
use qrm_rl::task::Source;
use qrm_trainer::optimizer::Settings;
use qrm_trainer::task::Split;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, policy, url, steps, output] = &args[..] else {
        anyhow::bail!("reinforce POLICY URL STEPS OUTPUT")
    };
    let adam = Settings { betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let text = TextProcessor::load(Path::new(policy))?;
    let server = Rewards::new(vec![url.clone()], text, Asked::default(), Duration::from_secs(60));
    let mut policy = Learner::policy(Path::new(policy), adam, 8192)?;
    let mut questions = Source::arithmetic(Split::Train, 1..=3, 0);
    let sampler = Sampler { temperature: 1.0, samples: 4, max_new_tokens: 64 };
    for step in 0..steps.parse()? {
        let questions = questions.take(16, &policy.model)?;
        let answers = sampler.sample(&policy.model, &questions, step)?;
        let mut rewards = server.score(&answers)?.rewards;
        normalize(&mut rewards, Normalize::Standard);
        let trajectories: Vec<_> = answers.iter().map(|answer| answer.trajectory()).collect();
        let tokens: usize = rewards.iter().map(Vec::len).sum();
        policy.update(&trajectories, 3e-5, |places, outputs| {
            reinforce(outputs, &rewards[places].concat(), tokens as f64)
        })?;
        let right = answers.iter().filter(|answer| answer.is_right).count();
        println!("step {step}: {right} of {} right", answers.len());
    }
    policy.save(Path::new(output))
}

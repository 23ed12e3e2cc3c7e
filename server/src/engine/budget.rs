//! How much a batch should cost: the least that keeps the device busy. More would make others wait for nothing, where it
//! is long enough to be waited for.

use std::time::{Duration, Instant};

use qrm_model::{ModelError, RewardModel, Trajectory};

use super::cost::Cost;

/// Tokens of the batch that brings the weights into memory and tells how long the others will take.
const FIRST: usize = 64;
/// Batches that are tried, tokens. A smaller one would cut groups apart; a GPU reads 12 000 tokens of a model of 1.2 billion
/// parameters in 50 ms.
const TRIED: [usize; 6] = [512, 1024, 2048, 4096, 8192, 16_384];
/// A larger batch is worth it if it is faster by this.
const FASTER: f64 = 1.03;
/// Nobody minds waiting for a batch that is over sooner; a larger one is no worse then.
const SHORT: Duration = Duration::from_millis(50);
/// No batch is tried that would take longer.
const LONG: Duration = Duration::from_millis(1500);

/// Measures batches of growing size for as long as they are short or get faster, and gives the cost of the last that was or
/// did. Where the model cannot compute what is tried, that is its requests' affair.
pub(super) fn measure(model: &RewardModel, cost: &Cost, pool: &rayon::ThreadPool) -> f64 {
    try_measure(model, cost, pool).unwrap_or(TRIED[0] as f64)
}

fn try_measure(model: &RewardModel, cost: &Cost, pool: &rayon::ThreadPool) -> Result<f64, ModelError> {
    let run = |tokens: usize| {
        let length = model.context_length().min(tokens).clamp(2, 128);
        let batch: Vec<Trajectory> =
            (0..tokens / length).map(|i| trajectory(i, length, model.vocab_size())).collect();
        let start = Instant::now();
        pool.install(|| model.score(&batch))?;
        let spent: f64 = batch.iter().map(|t| cost.of(0, t.len(), t.response_ids.len())).sum();
        Ok::<_, ModelError>((spent, start.elapsed()))
    };
    run(FIRST)?;
    let (_, first) = run(FIRST)?;
    let (mut budget, mut best) = (TRIED[0] as f64, 0.0);
    for tokens in TRIED.into_iter().filter(|n| first.mul_f64(*n as f64 / FIRST as f64) < LONG) {
        // What is too large for the device's memory ends it, too.
        let Ok((spent, time)) = run(tokens) else { break };
        let rate = spent / time.as_secs_f64().max(1e-9);
        if time > SHORT && rate < FASTER * best {
            break;
        }
        (budget, best) = (spent, rate.max(best));
    }
    Ok(budget)
}

/// Trajectories that share nothing, half of each a response.
fn trajectory(index: usize, length: usize, vocab: usize) -> Trajectory {
    let ids: Vec<u32> = (0..length).map(|t| ((index + t * (index + 1)) % vocab) as u32).collect();
    let (prompt, response) = ids.split_at(length / 2);
    Trajectory { prompt_ids: prompt.into(), response_ids: response.into() }
}

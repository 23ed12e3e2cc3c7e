//! `RESULTS.md` and its plots.

mod costs;
mod looks;
mod policies;

use super::results::Results;
use super::size::Size;
use super::stage::Workshop;
use costs::costs;
use looks::{looks, reward_models};
use policies::{learning_curves, passes, table};

/// Writes what there is, of these reward models.
pub(super) fn write(shop: &Workshop, size: &Size, models: &[&str], results: &Results) -> anyhow::Result<()> {
    std::fs::create_dir_all(shop.path("plots"))?;
    let mut text = String::from("# Results\n\nWritten by `qrm-rl reproduce`.\n");
    for part in results.parts.iter().filter(|part| part.arms.iter().any(|t| !t.tests.is_empty())) {
        table(&mut text, part, size)?;
        for algorithm in ["reinforce", "ppo"] {
            learning_curves(&mut text, shop, size, part, algorithm)?;
        }
        passes(&mut text, shop, part)?;
    }
    reward_models(&mut text, shop, models)?;
    looks(&mut text, shop, models)?;
    costs(&mut text, shop, results)?;
    Ok(std::fs::write(shop.path("RESULTS.md"), text)?)
}

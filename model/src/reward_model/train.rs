//! Gradients of a batch, of whatever loss the caller makes of what the head says.

use candle_core::Tensor;

use super::{ModelError, Plan, RewardModel};
use crate::prefix_cache::Continuation;
use crate::training::{Gradients, Pass};
use crate::trajectory::Trajectory;

impl RewardModel {
    /// Runs a batch forward, makes a loss of what the head says, and adds its gradients to `gradients`.
    ///
    /// `loss` gets the head's outputs on all response tokens in the order of the batch: `[R, 3]` of a vocabulary head
    /// (logit, logsumexp, entropy), `[R, 1]` of a scalar head, f32; it gives a scalar. With `checkpointing` a layer's activations
    /// are computed again on the way back instead of kept.
    pub fn train(
        &self,
        batch: &[Trajectory],
        checkpointing: bool,
        gradients: &mut Gradients,
        loss: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<f32, ModelError> {
        let Plan { forest, rows, targets } = self.plan(batch, &mut Continuation::default())?;
        let (pass, outputs) = Pass::run(&self.decoder, &self.head, &forest, &rows, &targets, checkpointing)?;
        let loss = loss(&outputs)?;
        let value = loss.to_scalar()?;
        pass.backward(&loss, &self.trained, gradients)?;
        Ok(value)
    }
}

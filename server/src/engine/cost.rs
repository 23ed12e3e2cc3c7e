//! What a trajectory costs a batch, in units of one token through the linear layers.

use qrm_model::RewardModel;

/// Of a model on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    /// One query over one key.
    pub(crate) per_pair: f64,
    /// One response token through the head.
    pub(crate) per_row: f64,
}

impl Cost {
    /// By the multiplications of its parts.
    pub(crate) fn of_model(model: &RewardModel) -> Self {
        let work = model.work();
        let token = work.per_token.max(1) as f64;
        Self { per_pair: work.per_pair as f64 / token, per_row: work.per_row as f64 / token }
    }

    /// Of tokens `begin .. len` of a trajectory with `response` response tokens; what comes before `begin` is computed for
    /// another.
    pub(crate) fn of(&self, begin: usize, len: usize, response: usize) -> f64 {
        // Position p attends to p + 1 keys.
        let pairs = |n: usize| n as f64 * (n as f64 + 1.0) / 2.0;
        (len - begin) as f64 + self.per_pair * (pairs(len) - pairs(begin)) + self.per_row * response as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Cost;

    #[test]
    fn a_shared_beginning_costs_once() {
        let cost = Cost { per_pair: 0.5, per_row: 0.25 };
        assert_eq!(cost.of(0, 3, 2), 3.0 + 0.5 * (1.0 + 2.0 + 3.0) + 0.5);
        assert_eq!(cost.of(0, 2, 0) + cost.of(2, 3, 2), cost.of(0, 3, 2));
        assert_eq!(cost.of(3, 3, 0), 0.0);
    }
}

//! Sizes of the experiment: the one for a table, and one for the tests.

/// How large everything is.
#[derive(Debug, Clone)]
pub(super) struct Size {
    /// Of the policy and the reward models; flags of `task start`.
    pub(super) shape: &'static str,
    /// Worked answers to learn the task from.
    pub(super) answers: usize,
    /// Steps of SFT on them: of the policy, and from there on of the reward models' backbone, which knows the task better.
    pub(super) sft: (usize, usize),
    /// Problems whose answers become pairs, and labelled steps.
    pub(super) sampled: (usize, usize),
    /// Flags of the sampling of pairs: `--worked` adds worked answers for problems that the policy never solves, and then
    /// a pair can also be told by who wrote it.
    pub(super) pairs: &'static str,
    /// Steps of each reward model.
    pub(super) rm_steps: usize,
    /// Steps of a policy, questions and answers to each.
    pub(super) rl: (usize, usize, usize),
    /// Steps between evaluations.
    pub(super) eval_every: usize,
    /// Questions of validation and test, and sampled answers to each.
    pub(super) questions: (usize, usize, usize),
    /// Seeds of a policy's training.
    pub(super) seeds: usize,
    /// Fewest and most events of a story; controls are at the first.
    pub(super) difficulties: &'static [(usize, usize)],
    /// Longest answer, tokens.
    pub(super) longest: usize,
}

impl Size {
    /// Hours on two cores.
    pub(super) const FULL: Self = Self {
        shape: "",
        answers: 200_000,
        sft: (2000, 2000),
        sampled: (12_000, 4000),
        pairs: "",
        rm_steps: 1000,
        rl: (24, 64, 4),
        eval_every: 4,
        questions: (200, 400, 4),
        seeds: 3,
        difficulties: &[(3, 3), (1, 2)],
        longest: 160,
    };

    /// Everything, of models that have learnt nothing: minutes.
    pub(super) const QUICK: Self = Self {
        shape: "--hidden-size 16 --layers 1 --heads 1 --intermediate-size 32 --vocab-size 320",
        answers: 400,
        sft: (4, 4),
        sampled: (40, 40),
        pairs: "--worked",
        rm_steps: 2,
        rl: (2, 4, 2),
        eval_every: 1,
        questions: (8, 8, 2),
        seeds: 2,
        difficulties: &[(1, 1), (2, 2)],
        longest: 24,
    };

    /// Steps of a policy.
    pub(super) fn steps(&self) -> usize {
        self.rl.0
    }

    /// Answers that a policy learns from in a step.
    pub(super) fn answers_of_a_step(&self) -> usize {
        self.rl.1 * self.rl.2
    }

    /// Sampled answers to a test question.
    pub(super) fn samples(&self) -> usize {
        self.questions.2
    }
}

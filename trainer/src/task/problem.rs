//! Problems: a story told in words, and the equations that answer it.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::story;

/// What a problem may be used for. No test problem has the story or the numbers of a training problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Split {
    /// Eight tenths of the stories and of the numbers.
    Train,
    /// A tenth.
    Validation,
    /// A tenth.
    Test,
}

impl Split {
    /// Of a story, or of a tuple of numbers, by a hash that stays the same everywhere.
    fn of(value: &impl Debug) -> Self {
        match crc32c::crc32c(format!("{value:?}").as_bytes()) % 10 {
            8 => Self::Validation,
            9 => Self::Test,
            _ => Self::Train,
        }
    }
}

/// `+ − * /`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Sum.
    Add,
    /// Difference.
    Subtract,
    /// Product.
    Multiply,
    /// Quotient, without a rest.
    Divide,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Add, Self::Subtract, Self::Multiply, Self::Divide];

    /// As it is written.
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
            Self::Divide => '/',
        }
    }

    /// The result; a quotient is cut to a whole number.
    pub fn apply(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a.checked_div(b).unwrap_or(0),
        }
    }

    /// Whether the operands may be swapped.
    pub fn commutes(self) -> bool {
        matches!(self, Self::Add | Self::Multiply)
    }
}

/// Where a number of an equation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The problem names it.
    Given(i64),
    /// The result of an earlier step.
    Step(usize),
}

impl Operand {
    /// The number, given the results of the steps.
    pub fn value(self, results: &[i64]) -> i64 {
        match self {
            Self::Given(n) => n,
            Self::Step(i) => results[i],
        }
    }
}

/// One equation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// Left of the operator.
    pub left: Operand,
    /// The operator.
    pub operator: Operator,
    /// Right of the operator.
    pub right: Operand,
}

impl Step {
    /// Whether its operands are known once the steps that are `done` are.
    pub fn is_ready(&self, done: &[bool]) -> bool {
        [self.left, self.right].into_iter().all(|operand| match operand {
            Operand::Given(_) => true,
            Operand::Step(i) => done[i],
        })
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The text.
    pub question: String,
    /// The equations; each uses results of earlier ones only.
    pub steps: Vec<Step>,
}

/// What happens in a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Event {
    Gain,
    Lose,
    PacksIn,
    PacksOut,
    Times,
    Share,
}

const EVENTS: [Event; 6] =
    [Event::Gain, Event::Lose, Event::PacksIn, Event::PacksOut, Event::Times, Event::Share];

/// The largest number that appears.
const MOST: i64 = 999;

impl Problem {
    /// The results of the steps.
    pub fn results(&self) -> Vec<i64> {
        let mut results: Vec<i64> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            results.push(step.operator.apply(step.left.value(&results), step.right.value(&results)));
        }
        results
    }

    /// The result of the last step.
    pub fn result(&self) -> i64 {
        self.results().last().copied().unwrap_or(0)
    }
}

/// The events of stories that there are.
pub fn events(fewest: usize, most: usize) -> anyhow::Result<RangeInclusive<usize>> {
    anyhow::ensure!(1 <= fewest && fewest <= most, "there are no stories of {fewest} to {most} events");
    Ok(fewest..=most)
}

/// An endless sequence of problems.
#[derive(Debug)]
pub struct Generator {
    rng: StdRng,
    split: Split,
    events: RangeInclusive<usize>,
}

impl Generator {
    /// Problems of `split` with this many events each, its difficulty.
    pub fn new(split: Split, events: RangeInclusive<usize>, seed: u64) -> Self {
        // Splits do not share a sequence either.
        let seed = seed.wrapping_mul(3).wrapping_add(split as u64);
        Self { rng: StdRng::seed_from_u64(seed), split, events }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    /// A story and numbers, of any split.
    fn draw(&mut self) -> Option<(Problem, bool)> {
        let count = self.rng.random_range(self.events.clone());
        let (items, packs) = self.pick(&story::ITEMS);
        let name = self.pick(&story::NAMES);
        let other = loop {
            let other = self.pick(&story::NAMES);
            if other != name {
                break other;
            }
        };
        let first = self.rng.random_range(5..100);
        let (start, ask) = (self.pick(&story::START), self.pick(&story::ASK));
        let fill = |text: &str, numbers: &[(&str, i64)]| {
            let mut text = text.replace("{name}", name).replace("{other}", other);
            text = text.replace("{items}", items).replace("{packs}", packs);
            numbers.iter().fold(text, |text, (key, n)| text.replace(key, &n.to_string()))
        };
        let mut sentences = vec![fill(start, &[("{n}", first)])];
        let (mut shape, mut numbers) = (vec![(None, start)], vec![first]);
        let (mut steps, mut now, mut at) = (Vec::new(), first, Operand::Given(first));
        for _ in 0..count {
            let event = self.pick(&EVENTS);
            let (text, a, b) = self.event(event, now)?;
            shape.push((Some(event), text));
            let operator = match event {
                Event::Gain | Event::PacksIn => Operator::Add,
                Event::Lose | Event::PacksOut => Operator::Subtract,
                Event::Times => Operator::Multiply,
                Event::Share => Operator::Divide,
            };
            let right = match b {
                None => {
                    sentences.push(fill(text, &[("{n}", a)]));
                    Operand::Given(a)
                }
                Some(b) => {
                    sentences.push(fill(text, &[("{a}", a), ("{b}", b)]));
                    let (left, right) = (Operand::Given(a), Operand::Given(b));
                    steps.push(Step { left, operator: Operator::Multiply, right });
                    Operand::Step(steps.len() - 1)
                }
            };
            numbers.extend([a].into_iter().chain(b));
            steps.push(Step { left: at, operator, right });
            at = Operand::Step(steps.len() - 1);
            now = operator.apply(now, a * b.unwrap_or(1));
            if !(1..=MOST).contains(&now) {
                return None;
            }
        }
        sentences.push(fill(ask, &[]));
        let ours = Split::of(&shape) == self.split && Split::of(&numbers) == self.split;
        Some((Problem { question: sentences.join(" "), steps }, ours))
    }

    /// How an event is told and its numbers; none where it does not fit what there is.
    fn event(&mut self, event: Event, now: i64) -> Option<(&'static str, i64, Option<i64>)> {
        Some(match event {
            Event::Gain => (self.pick(&story::GAIN), self.rng.random_range(2..100), None),
            Event::Lose if now > 3 => (self.pick(&story::LOSE), self.rng.random_range(2..now.min(100)), None),
            Event::PacksIn => {
                let (a, b) = (self.rng.random_range(2..10), self.rng.random_range(2..13));
                (self.pick(&story::PACKS_IN), a, Some(b))
            }
            Event::PacksOut => {
                let (a, b) = (self.rng.random_range(2..10), self.rng.random_range(2..13));
                if a * b >= now {
                    return None;
                }
                (self.pick(&story::PACKS_OUT), a, Some(b))
            }
            Event::Times if now <= MOST / 2 => (self.pick(&story::TIMES), self.rng.random_range(2..5), None),
            Event::Share => {
                let parts: Vec<i64> = (2..10).filter(|n| now % n == 0 && now / n > 1).collect();
                if parts.is_empty() {
                    return None;
                }
                (self.pick(&story::SHARE), self.pick(&parts), None)
            }
            Event::Lose | Event::Times => return None,
        })
    }
}

impl Iterator for Generator {
    type Item = Problem;

    fn next(&mut self) -> Option<Problem> {
        loop {
            if let Some((problem, true)) = self.draw() {
                return Some(problem);
            }
        }
    }
}

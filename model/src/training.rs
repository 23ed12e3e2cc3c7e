//! A reward model that can be trained: its variables, and a forward whose gradients can be taken.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use qrm_kernels::{Layout, Rows};

use crate::decoder::Decoder;
use crate::forest::Forest;
use crate::head::Head;

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Every tensor.
    Full,
    /// Low-rank adapters, and a head that the checkpoint did not have.
    Lora(Lora),
}

/// LoRA (arXiv 2106.09685), without dropout.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Rank of the change.
    pub rank: usize,
    /// The change is scaled by α / rank.
    pub alpha: f64,
    /// Projections that get an adapter, by their last name (`q_proj`).
    pub targets: Vec<String>,
}

impl Method {
    pub(crate) fn targets(&self, name: &str) -> bool {
        matches!(self, Self::Lora(lora) if lora.targets.iter().any(|target| target == name))
    }
}

/// The variables of a model by Hugging Face name; an adapter's are `…q_proj.lora_A.weight` and `…lora_B.weight`.
#[derive(Debug, Clone, Default)]
pub struct Parameters(Vec<(String, Var)>);

impl Parameters {
    pub(crate) fn push(&mut self, name: &str, var: Var) {
        self.0.push((name.to_owned(), var));
    }

    /// In the order they were loaded.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// How many variables.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|(_, var)| var.elem_count()).sum()
    }
}

/// Gradients of a model's variables, summed over passes. One entry per variable, in the order of [`Parameters`].
#[derive(Debug, Clone)]
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// None yet.
    pub fn new(parameters: &Parameters) -> Self {
        Self(vec![None; parameters.len()])
    }

    /// The sums, none where no pass has reached a variable.
    pub fn iter(&self) -> impl Iterator<Item = Option<&Tensor>> {
        self.0.iter().map(Option::as_ref)
    }

    fn add(&mut self, parameters: &Parameters, grads: &mut GradStore) -> Result<()> {
        for (sum, (_, var)) in self.0.iter_mut().zip(&parameters.0) {
            if let Some(grad) = grads.remove(var) {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + grad)?,
                    None => grad,
                });
            }
        }
        Ok(())
    }
}

/// One forward over a forest, layer by layer, that remembers what the way back needs.
///
/// Every layer has a graph of its own from a copy of its input. With checkpointing (arXiv 1604.06174) only those inputs
/// are kept and a layer's graph is made again when the way back reaches it: one more forward for the memory of one layer.
pub(crate) struct Pass<'a> {
    decoder: &'a Decoder,
    layout: Layout,
    embedded: Tensor,
    /// Input of each layer, and its output where that is kept.
    layers: Vec<(Var, Option<Tensor>)>,
    /// The last layer's output.
    last: Var,
}

impl<'a> Pass<'a> {
    /// Runs the forward. `outputs` are the head's for `rows` and `targets`, to be made into a loss.
    pub(crate) fn run(
        decoder: &'a Decoder,
        head: &Head,
        forest: &Forest,
        rows: &[u32],
        targets: &[u32],
        checkpointing: bool,
    ) -> Result<(Self, Tensor)> {
        let layout = decoder.layout(forest, rows);
        let embedded = decoder.embed(&forest.token_ids, &layout)?.into_tensor()?;
        let mut layers = Vec::new();
        let mut x = Var::from_tensor(&embedded.detach())?;
        for layer in decoder.layers() {
            let y = match checkpointing {
                true => layer.detach().forward(&Rows::from(x.as_detached_tensor()), &layout)?,
                false => layer.forward(&Rows::from(x.as_tensor().clone()), &layout)?,
            };
            let y = y.into_tensor()?;
            let next = Var::from_tensor(&y.detach())?;
            layers.push((x, (!checkpointing).then_some(y)));
            x = next;
        }
        let hidden = decoder.finish(&Rows::from(x.as_tensor().clone()), &layout)?.into_tensor()?;
        let outputs = head.tracked(&hidden, targets)?;
        Ok((Self { decoder, layout, embedded, layers, last: x }, outputs))
    }

    /// Adds the gradients of `loss`, a scalar made of the outputs.
    pub(crate) fn backward(self, loss: &Tensor, parameters: &Parameters, into: &mut Gradients) -> Result<()> {
        let mut grads = loss.backward()?;
        let mut g = grads.remove(&self.last);
        into.add(parameters, &mut grads)?;
        for (layer, (x, y)) in self.decoder.layers().iter().zip(self.layers).rev() {
            let Some(from) = g else { return Ok(()) }; // the loss does not depend on the decoder
            let y = match y {
                Some(y) => y,
                None => layer.forward(&Rows::from(x.as_tensor().clone()), &self.layout)?.into_tensor()?,
            };
            let mut grads = (y * from)?.sum_all()?.backward()?;
            g = grads.remove(&x);
            into.add(parameters, &mut grads)?;
        }
        match g {
            Some(g) if self.embedded.track_op() => {
                into.add(parameters, &mut (self.embedded * g)?.sum_all()?.backward()?)
            }
            _ => Ok(()),
        }
    }
}

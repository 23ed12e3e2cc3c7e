//! Weights out of a checkpoint, held as they will be used: packed to serve, as variables to train.

use std::sync::Arc;

use candle_core::{DType, Tensor, Var};
use qrm_kernels::{Device, Gates, Held, Norm, Panels, Weight};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::decoder::Embedding;
use crate::projection::{Adapter, Joined, Projection};
use crate::quantized::Quantized;
use crate::training::{Method, Parameters};

/// What a decoder and a head are loaded with.
pub(crate) struct Loader<'a> {
    checkpoint: &'a mut Checkpoint,
    /// Where what is loaded next is to lie.
    device: Device,
    /// None: nothing is trained.
    method: Option<&'a Method>,
    parameters: Parameters,
    rng: StdRng,
    /// Where int8 weights are kept from one start to the next.
    quantized: Option<Quantized>,
    /// A weight that two devices are to have, kept on the host from the one that takes it to the other.
    shared: Option<(String, Option<Tensor>)>,
}

impl<'a> Loader<'a> {
    /// Nothing trained. `quantized` is where int8 weights are kept.
    pub(crate) fn fixed(checkpoint: &'a mut Checkpoint, quantized: Option<Quantized>) -> Self {
        let (parameters, rng) = (Parameters::default(), StdRng::seed_from_u64(0));
        let device = Device::default();
        Self { checkpoint, device, method: None, parameters, rng, quantized, shared: None }
    }

    /// To be trained by `method`; `seed` makes what the checkpoint does not hold.
    pub(crate) fn training(checkpoint: &'a mut Checkpoint, method: &'a Method, seed: u64) -> Self {
        let (method, rng) = (Some(method), StdRng::seed_from_u64(seed));
        let (device, parameters) = (Device::default(), Parameters::default());
        Self { checkpoint, device, method, parameters, rng, quantized: None, shared: None }
    }

    /// What is loaded from now on lies on `device`.
    pub(crate) fn onto(&mut self, device: &Device) {
        self.device = device.clone();
    }

    /// Lets `name` be taken twice.
    pub(crate) fn share(&mut self, name: &str) {
        self.shared = Some((name.to_owned(), None));
    }

    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    pub(crate) fn is_training(&self) -> bool {
        self.method.is_some()
    }

    /// The end of loading: keeps what was quantised, and gives what is to be trained, in the order it was loaded.
    pub(crate) fn finish(self) -> Result<Parameters, CheckpointError> {
        if let Some(quantized) = self.quantized {
            quantized.save()?;
        }
        Ok(self.parameters)
    }

    /// A tensor as it is, or a variable where everything is trained.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let tensor = match self.shared.take_if(|(shared, kept)| shared == name && kept.is_some()) {
            Some((_, Some(kept))) => kept,
            _ => self.checkpoint.tensor(name, shape)?,
        };
        if let Some((_, kept)) = self.shared.as_mut().filter(|(shared, _)| shared == name) {
            *kept = Some(tensor.clone());
        }
        match self.method {
            Some(Method::Full) => self.variable(name, tensor),
            _ => Ok(tensor),
        }
    }

    /// The weight of a norm, `[width]`.
    pub(crate) fn norm(&mut self, name: &str, width: usize) -> Result<Norm, CheckpointError> {
        let weight = self.tensor(name, &[width])?;
        self.device.norm(weight).map_err(broken)
    }

    /// A table of embeddings `[V, d]`.
    pub(crate) fn embedding(&mut self, name: &str, shape: [usize; 2]) -> Result<Embedding, CheckpointError> {
        let table = self.tensor(name, &shape)?;
        match &self.device {
            // One that is trained stays the variable that it is.
            Device::Cpu(..) if matches!(self.method, Some(Method::Full)) => Ok(Embedding::Matrix(table)),
            device @ Device::Cpu(..) => device.table(&table).map(Embedding::Matrix).map_err(broken),
            #[cfg(feature = "cuda")]
            device => match device.weight(&table).map_err(broken)? {
                Weight::Cuda(table) => Ok(Embedding::Cuda(table)),
                _ => Ok(Embedding::Matrix(table)),
            },
        }
    }

    /// The weight `[V, d]` of a vocabulary head.
    pub(crate) fn weight(&mut self, name: &str, shape: [usize; 2]) -> Result<Weight, CheckpointError> {
        let part = [(name.to_owned(), shape[0])];
        if let Some(panels) = self.kept(name, &part, shape[1], self.device.weights().head())? {
            return Ok(Weight::Packed(panels));
        }
        let tensor = self.tensor(name, &shape)?;
        match self.method {
            Some(Method::Full) => Ok(Weight::Trained(tensor)),
            _ => {
                let weight = self.device.weight(&tensor).map_err(broken)?;
                self.keep(name, weight.packed());
                Ok(weight)
            }
        }
    }

    /// Weights `(name, outputs)` of width `input` as one, under the name `all`, if they are wanted as they were kept.
    fn kept(
        &mut self,
        all: &str,
        parts: &[(String, usize)],
        input: usize,
        wanted: Held,
    ) -> Result<Option<Arc<Panels>>, CheckpointError> {
        let Some(quantized) = self.quantized.as_ref().filter(|_| wanted == Held::Int8) else {
            return Ok(None);
        };
        let out = parts.iter().map(|(_, out)| out).sum();
        let Some(panels) = quantized.get(all, out, input)? else { return Ok(None) };
        for (name, out) in parts {
            self.checkpoint.skip(name, &[*out, input])?;
        }
        Ok(Some(Arc::new(panels)))
    }

    /// Keeps a weight under the name `all`, if it is in int8.
    fn keep(&mut self, all: &str, weight: Option<&Arc<Panels>>) {
        if let (Some(quantized), Some(panels)) = (&mut self.quantized, weight)
            && panels.held() == Held::Int8
        {
            quantized.put(all, panels);
        }
    }

    /// The weight `[1, d]` of a scalar head.
    pub(crate) fn scalar(&mut self, name: &str, width: usize) -> Result<Weight, CheckpointError> {
        let tensor = self.tensor(name, &[1, width])?;
        match self.method {
            Some(Method::Full) => Ok(Weight::Trained(tensor)),
            _ => self.device.scalar(&tensor).map_err(broken),
        }
    }

    /// A weight that training starts from noise: normal, deviation 0.02, as `transformers` does.
    pub(crate) fn noise(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor, CheckpointError> {
        let uniform = |rng: &mut StdRng| rng.random::<f64>().max(f64::MIN_POSITIVE);
        let values = (0..shape.iter().product()).map(|_| {
            let (a, b) = (uniform(&mut self.rng), uniform(&mut self.rng));
            (0.02 * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
        });
        let tensor = Tensor::from_vec(values.collect(), &shape, &candle_core::Device::Cpu).map_err(broken)?;
        self.variable(name, tensor)
    }

    /// A bias that training starts from zero.
    pub(crate) fn zeros(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let zeros = Tensor::zeros(shape, DType::F32, &candle_core::Device::Cpu).map_err(broken)?;
        self.variable(name, zeros)
    }

    /// Projections `(name, outputs)` that read the same input, as one.
    pub(crate) fn projection(
        &mut self,
        prefix: &str,
        parts: &[(&str, usize)],
        input: usize,
        with_bias: bool,
    ) -> Result<Projection, CheckpointError> {
        let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        let all = format!("{prefix}.{}", names.join("-"));
        let named: Vec<_> =
            parts.iter().map(|(name, out)| (format!("{prefix}.{name}.weight"), *out)).collect();
        let kept = self.kept(&all, &named, input, self.device.weights().layers())?;
        let (mut weights, mut bias, mut adapters) = (Vec::new(), Vec::new(), Vec::new());
        for (name, out) in parts {
            if kept.is_none() {
                weights.push(self.tensor(&format!("{prefix}.{name}.weight"), &[*out, input])?);
            }
            if with_bias {
                bias.push(self.tensor(&format!("{prefix}.{name}.bias"), &[*out])?);
            }
            adapters.push((*out, self.adapter(prefix, name, *out, input)?));
        }
        let weight = match self.method {
            Some(Method::Full) => Joined::Trained(weights),
            _ => {
                let joined =
                    if bias.is_empty() { None } else { Some(Tensor::cat(&bias, 0).map_err(broken)?) };
                let weights: Vec<&Tensor> = weights.iter().collect();
                let weight = match kept {
                    Some(panels) => Weight::Packed(panels),
                    None => {
                        let weight = self.device.projection(&weights, joined.as_ref()).map_err(broken)?;
                        self.keep(&all, weight.packed());
                        weight
                    }
                };
                if weight.packed().is_none() {
                    bias.clear(); // the weight has it with it
                }
                Joined::Fixed(weight)
            }
        };
        Ok(Projection { weight, bias, parts: adapters })
    }

    /// `gate_proj` and `up_proj`, `outputs` each, for [`Projection::gated`].
    pub(crate) fn gates(
        &mut self,
        prefix: &str,
        outputs: usize,
        input: usize,
        with_bias: bool,
    ) -> Result<Projection, CheckpointError> {
        let parts = ["gate_proj", "up_proj"];
        // One multiply with its SwiGLU adds no bias, has no way back, and is the CPU's.
        if with_bias || self.method.is_some() || !self.device.is_cpu() {
            return self.projection(prefix, &parts.map(|part| (part, outputs)), input, with_bias);
        }
        let all = format!("{prefix}.{}", parts.join("-"));
        let named = parts.map(|part| (format!("{prefix}.{part}.weight"), outputs));
        let weight = match self.kept(&all, &named, input, self.device.weights().layers())? {
            Some(panels) => Gates::from_panels(panels).map_err(broken)?,
            None => {
                let gate = self.tensor(&named[0].0, &[outputs, input])?;
                let up = self.tensor(&named[1].0, &[outputs, input])?;
                let weight = Gates::pack(&gate, &up, self.device.weights().layers()).map_err(broken)?;
                self.keep(&all, Some(weight.panels()));
                weight
            }
        };
        let parts = parts.map(|_| (outputs, None)).into();
        Ok(Projection { weight: Joined::Gates(weight), bias: Vec::new(), parts })
    }

    /// A uniform in ±1/√in and B zero, as PEFT starts them.
    fn adapter(
        &mut self,
        prefix: &str,
        name: &str,
        out: usize,
        input: usize,
    ) -> Result<Option<Adapter>, CheckpointError> {
        let Some(Method::Lora(lora)) = self.method.filter(|m| m.targets(name)) else { return Ok(None) };
        let bound = 1.0 / (input as f32).sqrt();
        let a = (0..lora.rank * input).map(|_| self.rng.random_range(-bound..bound)).collect();
        let a = Tensor::from_vec(a, (lora.rank, input), &candle_core::Device::Cpu).map_err(broken)?;
        let b = Tensor::zeros((out, lora.rank), a.dtype(), &candle_core::Device::Cpu).map_err(broken)?;
        Ok(Some(Adapter {
            a: self.variable(&format!("{prefix}.{name}.lora_A.weight"), a)?,
            b: self.variable(&format!("{prefix}.{name}.lora_B.weight"), b)?,
            scale: lora.alpha / lora.rank as f64,
        }))
    }

    /// Registers a variable and gives it as the tensor that autograd follows.
    pub(crate) fn variable(&mut self, name: &str, tensor: Tensor) -> Result<Tensor, CheckpointError> {
        let var = Var::from_tensor(&tensor).map_err(broken)?;
        let tensor = var.as_tensor().clone();
        self.parameters.push(name, var);
        Ok(tensor)
    }
}

pub(crate) fn broken(error: candle_core::Error) -> CheckpointError {
    CheckpointError::Weights(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// As the head and the embedding of a tied model take it that are on different GPUs.
    #[test]
    fn a_shared_weight_is_taken_twice() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llama-tied");
        let (name, shape) = ("model.embed_tokens.weight", [509, 64]);
        let mut checkpoint = Checkpoint::open(&dir).unwrap();
        let mut loader = Loader::fixed(&mut checkpoint, None);
        loader.share(name);
        let head = loader.weight(name, shape).unwrap();
        let Embedding::Matrix(table) = loader.embedding(name, shape).unwrap() else { panic!("a matrix") };
        let rows = head.panels().unwrap().gather(&[0, 508]).unwrap().to_vec2::<f32>().unwrap();
        let table = table.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((&rows[0], &rows[1]), (&table[0], &table[508]));
        assert!(loader.tensor(name, &shape).is_err(), "a third time");
        assert_eq!(checkpoint.parameters(), 509 * 64);
    }
}

//! The one decoder: token ids of a forest in, hidden states out. Llama, Mistral, Qwen2 and Qwen3 are settings of it.
//! `layer`: one of its layers.

mod layer;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
#[cfg(feature = "cuda")]
use qrm_kernels::{Device, cuda};
use qrm_kernels::{Fresh, KvCache, Layout, Norm, Panels, RopeTable, Rows, Segment};

use crate::checkpoint::{CheckpointError, DecoderConfig, inv_freq};
use crate::forest::Forest;
use crate::loader::{Loader, broken};
use crate::placement::{Part, Placement};
use crate::prefix_cache::Continuation;
use layer::Layer;

/// The weight of the embeddings, and of a head that is tied to them.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// Where token embeddings come from.
pub(crate) enum Embedding {
    /// A matrix, `[V, d]`, in the type that weights are held in.
    Matrix(Tensor),
    /// The packed `lm_head`, read row by row: one copy in memory.
    Tied(Arc<Panels>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Linear>),
}

/// Positions whose rotations are there from the start. A longer batch adds those that it needs: a million-token context must
/// not cost memory before anyone uses it.
const ROPE_POSITIONS: usize = 8192;

/// Embedding, layers and final norm.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    rope: Mutex<Arc<RopeTable>>,
    parts: Vec<Part>,
}

impl Decoder {
    /// Takes the decoder's weights. `tied` are the embeddings of a model that shares them with its head.
    pub(crate) fn load(
        loader: &mut Loader<'_>,
        tied: Option<Embedding>,
        placement: &Placement,
    ) -> Result<Self, CheckpointError> {
        let config = loader.checkpoint().config().clone();
        let (d, v) = (config.hidden_size, config.vocab_size);
        let positions = config.max_position_embeddings.min(ROPE_POSITIONS);
        let rope = Arc::new(RopeTable::new(&inv_freq(&config), positions));
        let parts = placement.parts(config.num_hidden_layers, &rope).map_err(broken)?;
        loader.onto(placement.first());
        let embedding = match tied.filter(|_| placement.first().is(placement.last())) {
            Some(embedding) => embedding,
            None => loader.embedding(EMBEDDING, [v, d])?,
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for part in &parts {
            loader.onto(&part.device);
            let load = || part.layers.clone().map(|index| Layer::load(loader, &config, index)).collect();
            let loaded: Result<Vec<Layer>, CheckpointError> = part.run(load);
            layers.extend(loaded?);
        }
        let final_norm = loader.norm("model.norm.weight", d)?;
        Ok(Self { config, embedding, layers, final_norm, rope: Mutex::new(rope), parts })
    }

    /// Hidden states after the final norm at `rows` of the forest, `[rows.len(), d]`. No gradients.
    pub(crate) fn forward(
        &self,
        forest: &Forest,
        continued: &mut Continuation,
        rows: &[u32],
    ) -> candle_core::Result<Rows> {
        let mut x = None;
        for part in 0..self.parts.len() {
            x = Some(self.through(part, x, forest, continued, rows)?);
        }
        x.ok_or_else(|| candle_core::Error::msg("a decoder without parts"))
    }

    /// Bytes free on the parts' GPUs, as if all had as little as the one with the least.
    pub(crate) fn free_gpu_bytes(&self) -> candle_core::Result<Option<usize>> {
        let mut least: Option<usize> = None;
        for part in &self.parts {
            if let Some(free) = part.device.free_bytes()? {
                least = Some(least.map_or(free, |least| least.min(free)));
            }
        }
        Ok(least.map(|least| least * self.parts.len()))
    }

    /// The device of each layer.
    #[cfg(feature = "cuda")]
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.parts.iter().flat_map(|part| part.layers.clone().map(|_| &part.device))
    }

    /// How many parts its layers are in, each on a device of its own.
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// One part of [`Decoder::forward`]: from what the part before gave, nothing at first, to what the next one takes.
    pub(crate) fn through(
        &self,
        part: usize,
        x: Option<Rows>,
        forest: &Forest,
        continued: &mut Continuation,
        rows: &[u32],
    ) -> candle_core::Result<Rows> {
        let is_last = part + 1 == self.parts.len();
        let part = &self.parts[part];
        part.run(|| {
            let rope = self.rope(&forest.positions);
            let layout = part.layout(forest, rows, rope, &self.config, continued)?;
            let mut x = match x {
                None => self.embed(&forest.token_ids, &layout)?,
                Some(x) => x.to(&part.device)?,
            };
            let layers = &self.layers[part.layers.clone()];
            for (i, layer) in layers.iter().enumerate() {
                let attend =
                    |qkv: &Rows, l: &Layer| continued.attend(qkv, &layout, (l.q_heads, l.kv_heads), l.window);
                x = self.layer(layer, is_last && i + 1 == layers.len(), &x, &layout, attend)?;
            }
            Ok(x)
        })
    }

    /// The same for new tokens alone, `token_ids [N]` in the order of `fresh`: what came before is read from `caches`,
    /// one a layer, which then hold the new tokens too. On the CPU.
    pub(crate) fn extend(
        &self,
        token_ids: &[u32],
        segments: &[Segment],
        fresh: &[Fresh],
        caches: &mut [KvCache],
        rows: &[u32],
    ) -> candle_core::Result<Tensor> {
        let positions: Arc<[u32]> = fresh
            .iter()
            .flat_map(|f| {
                let end = segments[f.segment].position + segments[f.segment].len;
                (end - f.len) as u32..end as u32
            })
            .collect();
        let rope = self.rope(&positions);
        let layout = Layout::new(positions, [].into(), rope, rows.into());
        let mut x = Rows::from(self.embed(token_ids, &layout)?.tensor()?.detach());
        for (i, (layer, cache)) in self.layers.iter().zip(caches).enumerate() {
            let attend = |qkv: &Rows, l: &Layer| {
                cache.attend(qkv.tensor()?, segments, fresh, l.q_heads, l.kv_heads, l.window).map(Rows::from)
            };
            x = self.layer(layer, i + 1 == self.layers.len(), &x, &layout, attend)?;
        }
        Ok(x.tensor()?.detach())
    }

    /// One layer, and behind the last one the final norm, at the rows that the head reads. No gradients.
    fn layer(
        &self,
        layer: &Layer,
        is_last: bool,
        x: &Rows,
        layout: &Layout,
        attend: impl FnOnce(&Rows, &Layer) -> candle_core::Result<Rows>,
    ) -> candle_core::Result<Rows> {
        let layer = layer.detach();
        let x = layer.around(x, layout, attend)?;
        match is_last {
            true => {
                let x = layer.mlp_read(&x, layout)?;
                x.rms_norm(&self.final_norm.detach(), self.config.rms_norm_eps as f32)
            }
            false => layer.mlp(&x),
        }
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What the layers read of a batch, on the CPU.
    pub(crate) fn layout(&self, forest: &Forest, rows: &[u32]) -> Layout {
        let rope = self.rope(&forest.positions);
        Layout::new(forest.positions.clone(), forest.segments.clone(), rope, rows.into())
    }

    fn rope(&self, positions: &[u32]) -> Arc<RopeTable> {
        let positions = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let mut table = self.rope.lock().unwrap_or_else(PoisonError::into_inner);
        if positions > table.positions() {
            let most = self.config.max_position_embeddings.max(positions);
            let positions = positions.next_power_of_two().min(most);
            *table = Arc::new(RopeTable::new(&inv_freq(&self.config), positions));
        }
        table.clone()
    }

    /// The tokens' embeddings, `[N, d]`.
    pub(crate) fn embed(&self, token_ids: &[u32], layout: &Layout) -> candle_core::Result<Rows> {
        let _ = layout; // a table on a GPU is told by it
        match &self.embedding {
            Embedding::Matrix(matrix) => {
                let ids = Tensor::from_slice(token_ids, token_ids.len(), &candle_core::Device::Cpu)?;
                matrix.index_select(&ids, 0)?.to_dtype(DType::F32).map(Rows::from)
            }
            Embedding::Tied(panels) => panels.gather(token_ids).map(Rows::from),
            #[cfg(feature = "cuda")]
            Embedding::Cuda(table) => layout.embed(table),
        }
    }

    /// The final norm, at the rows that the head reads.
    pub(crate) fn finish(&self, x: &Rows, layout: &Layout) -> candle_core::Result<Rows> {
        x.rms_norm_read(layout, &self.final_norm, self.config.rms_norm_eps as f32)
    }
}

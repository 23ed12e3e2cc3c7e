//! Where a model's layers compute: all on one device, or in parts on several, one after the other.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};

use candle_core::Result;
#[cfg(feature = "cuda")]
use qrm_kernels::cuda;
use qrm_kernels::{Cores, Device, Held, Layout, RopeTable};

use crate::checkpoint::{CheckpointError, DecoderConfig};
use crate::forest::Forest;
use crate::prefix_cache::Continuation;
use crate::quantized::Quantized;

/// The devices of one model, in the order of its layers. The first has the embedding, the last the head.
#[derive(Debug, Clone)]
pub struct Placement {
    devices: Vec<Device>,
    /// Where weights that were quantised are kept from one start to the next.
    int8_cache: Option<PathBuf>,
}

impl Default for Placement {
    fn default() -> Self {
        Self::on(Device::default())
    }
}

/// Layers that are on one device.
pub(crate) struct Part {
    pub(crate) device: Device,
    pub(crate) layers: Range<usize>,
    /// Its own threads, where other parts compute on the CPU at the same time.
    pool: Option<rayon::ThreadPool>,
    /// The angles of the positions that were needed so far.
    #[cfg(feature = "cuda")]
    rotation: Mutex<Option<Arc<cuda::Rotation>>>,
}

impl Placement {
    /// All on one device.
    pub fn on(device: Device) -> Self {
        Self { devices: vec![device], int8_cache: None }
    }

    /// Layers divided over `devices`, as evenly as it goes.
    pub fn split(devices: Vec<Device>) -> Self {
        if devices.is_empty() { Self::default() } else { Self { devices, int8_cache: None } }
    }

    /// The same, with int8 weights kept in files in `directory`, one for each checkpoint, and read from there the next time.
    /// Of the CPU alone.
    pub fn with_int8_cache(self, directory: Option<PathBuf>) -> Self {
        Self { int8_cache: directory, ..self }
    }

    /// The file of the checkpoint that goes by `version`, if there are int8 weights and they are kept.
    pub(crate) fn quantized(&self, version: &str) -> std::result::Result<Option<Quantized>, CheckpointError> {
        let is_int8 = |device: &Device| device.weights().layers() == Held::Int8;
        match &self.int8_cache {
            Some(directory) if self.is_cpu() && self.devices.iter().any(is_int8) => {
                Quantized::open(directory, version).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Where the threads belong that run it: on the CPUs of its first device.
    pub fn cores(&self) -> Cores {
        self.first().cores()
    }

    /// Whether all of it is on the CPU.
    pub fn is_cpu(&self) -> bool {
        self.devices.iter().all(Device::is_cpu)
    }

    /// Bytes of a number among keys and values.
    pub(crate) fn kv_size(&self) -> usize {
        match self.first() {
            Device::Cpu(..) => size_of::<f32>(),
            #[cfg(feature = "cuda")]
            Device::Cuda(_, weights) => weights.dtype.size(),
        }
    }

    pub(crate) fn first(&self) -> &Device {
        &self.devices[0]
    }

    pub(crate) fn last(&self) -> &Device {
        &self.devices[self.devices.len() - 1]
    }

    /// The parts of a decoder of `layers` layers.
    pub(crate) fn parts(&self, layers: usize, rope: &Arc<RopeTable>) -> Result<Vec<Part>> {
        let count = self.devices.len();
        let part = |(i, device): (usize, &Device)| {
            let pool = match device {
                Device::Cpu(_, cores) if count > 1 => {
                    let is_there = |device: &&Device| device.is_cpu() && device.cores() == *cores;
                    let threads = cores.count() / self.devices.iter().filter(is_there).count();
                    let name = move |thread| format!("layers-{i}-{thread}");
                    Some(cores.pool(threads, name).map_err(candle_core::Error::wrap)?)
                }
                _ => None,
            };
            Ok(Part {
                #[cfg(feature = "cuda")]
                rotation: Mutex::new(match device {
                    Device::Cpu(..) => None,
                    Device::Cuda(gpu, _) => Some(Arc::new(cuda::Rotation::upload(gpu, rope)?)),
                }),
                device: device.clone(),
                layers: layers * i / count..layers * (i + 1) / count,
                pool,
            })
        };
        #[cfg(not(feature = "cuda"))]
        let _ = rope;
        self.devices.iter().enumerate().map(part).collect()
    }
}

impl Part {
    /// Runs `compute` on the part's threads.
    pub(crate) fn run<T: Send>(&self, compute: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(compute),
            None => compute(),
        }
    }

    /// What the part's layers read of a batch, where they compute. `rows` are those that the head reads.
    pub(crate) fn layout(
        &self,
        forest: &Forest,
        rows: &[u32],
        rope: Arc<RopeTable>,
        config: &DecoderConfig,
        continued: &Continuation,
    ) -> Result<Layout> {
        let layout = Layout::new(forest.positions.clone(), forest.segments.clone(), rope, rows.into());
        match &self.device {
            Device::Cpu(..) => {
                let _ = (config, continued);
                Ok(layout)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu, _) => {
                let mut kept = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
                let rotation = match kept.take() {
                    Some(kept) if kept.positions() >= layout.rope.positions() => kept,
                    _ => Arc::new(cuda::Rotation::upload(gpu, &layout.rope)?),
                };
                *kept = Some(rotation.clone());
                drop(kept);
                let group = config.num_attention_heads / config.num_key_value_heads.max(1);
                let (slots, keep) = continued.slots();
                let batch = cuda::Batch {
                    ids: &forest.token_ids,
                    positions: &forest.positions,
                    segments: &forest.segments,
                    slots: &slots,
                    read: rows,
                    keep: &keep,
                };
                let plan = cuda::Plan::new(gpu, &batch, group)?;
                Ok(Layout { cuda: Some(Arc::new((plan, rotation))), ..layout })
            }
        }
    }
}

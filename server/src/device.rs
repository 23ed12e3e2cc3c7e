//! `--device`, `--split-layers` and `--dtype`: where a model computes, and in what.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use qrm_kernels::{Cores, Device, Float, Weights};
use qrm_model::Placement;

/// What `--device` may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All GPUs there are, else the CPU.
    Auto,
    /// These, by name.
    These(Vec<Name>),
}

/// A device by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Cpu(Cores),
    Cuda(usize),
}

/// What weights are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// f32 on the CPU (bf16 where that holds every weight as it is), bf16 on GPUs.
    Auto,
    F32,
    /// Half the memory. The CPU holds weights in it and computes in f32.
    Bf16,
    F16,
    /// One byte a weight of the layers, a quarter of the memory; a vocabulary head has two on the CPU. The CPU multiplies in
    /// integers, a GPU in bf16.
    Int8,
    /// One byte for that head too, and for an embedding that is the same matrix; on the CPU.
    Int8All,
}

/// The devices that were opened, ready for every model that is loaded.
#[derive(Debug, Clone)]
pub(crate) struct Devices {
    /// One for each copy of a model.
    pub(crate) placements: Vec<Placement>,
    /// `cuda:0,cuda:1`, for whoever asks.
    pub(crate) names: String,
    /// `bf16`.
    pub(crate) dtype: String,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self::These)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu(Cores::default())),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cpu", cores)) => cores.parse().map(Self::Cpu),
            Some(("cuda", ordinal)) => ordinal.parse().map(Self::Cuda).map_err(|e| format!("{text}: {e}")),
            _ => Err(format!(
                "{text:?} is no device: auto, cpu, cpu:0-15, cuda:0, or several as cuda:0,cuda:1"
            )),
        }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu(cores) if cores.are_chosen() => write!(f, "cpu:{cores}"),
            Self::Cpu(_) => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl Devices {
    /// Opens what is wanted: a copy of every model on each device, or with `split` one copy whose layers are divided over
    /// them.
    pub(crate) fn open(wanted: &Wanted, dtype: Dtype, split: bool) -> anyhow::Result<Self> {
        let names = match wanted {
            Wanted::These(names) => names.clone(),
            Wanted::Auto => match gpus() {
                Ok(0) => vec![Name::Cpu(Cores::default())],
                Ok(count) => (0..count).map(Name::Cuda).collect(),
                Err(why) => {
                    tracing::info!("computing on the CPU: {why}");
                    vec![Name::Cpu(Cores::default())]
                }
            },
        };
        let is_cpu = |name: &Name| matches!(name, Name::Cpu(_));
        let on_cpu = names.iter().filter(|name| is_cpu(name)).count();
        ensure!(on_cpu == 0 || on_cpu == names.len(), "--device {}: CPU and GPU do not mix", list(&names));
        // Opened twice, a GPU has two streams, and neither waits for what the other computes.
        let repeated = |(i, name): &(usize, &Name)| !is_cpu(name) && names[..*i].contains(name);
        if let Some((_, name)) = names.iter().enumerate().find(repeated).filter(|_| split) {
            bail!("--device {}: --split-layers takes {name} once", list(&names));
        }
        let dtype = match (dtype, on_cpu) {
            (Dtype::Auto, 0) => Dtype::Bf16,
            (Dtype::Auto, _) => Dtype::F32,
            (Dtype::Int8All, 0) => bail!("--dtype int8-all: a GPU has embedding and head in bf16; say int8"),
            (dtype, _) => dtype,
        };
        let open = |name: &Name| open(name, dtype).with_context(|| format!("--device {name}"));
        let devices = names.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
        let placements = match split {
            true => vec![Placement::split(devices)],
            false => devices.into_iter().map(Placement::on).collect(),
        };
        Ok(Self { placements, names: list(&names), dtype: word(dtype) })
    }

    /// With int8 weights kept in `directory`.
    pub(crate) fn with_int8_cache(self, directory: Option<&PathBuf>) -> Self {
        let placements = self.placements.into_iter();
        Self { placements: placements.map(|p| p.with_int8_cache(directory.cloned())).collect(), ..self }
    }
}

fn list(names: &[Name]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Dtype {
    /// What weights are held in.
    fn weights(self, is_cpu: bool) -> Weights {
        let weights: Weights = word(self).parse().unwrap_or_default(); // `auto` is no type
        match self {
            _ if is_cpu => weights,
            Self::Auto => Weights { dtype: Float::BF16, ..weights },
            _ => weights.on_gpu(),
        }
    }
}

fn word(dtype: Dtype) -> String {
    dtype.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// How many GPUs there are, or why none can be used.
#[cfg(feature = "cuda")]
fn gpus() -> Result<usize, qrm_kernels::cuda::GpuError> {
    match qrm_kernels::cuda::count()? {
        0 => Err(qrm_kernels::cuda::GpuError::NoSuchDevice { ordinal: 0, count: 0 }),
        count => Ok(count),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Result<usize, std::convert::Infallible> {
    Ok(0)
}

#[cfg(feature = "cuda")]
fn open(name: &Name, dtype: Dtype) -> anyhow::Result<Device> {
    let ordinal = match name {
        Name::Cpu(cores) => return Ok(Device::Cpu(dtype.weights(true), cores.clone())),
        Name::Cuda(ordinal) => *ordinal,
    };
    let gpu = qrm_kernels::cuda::Gpu::open(ordinal)?;
    let (free, total) = gpu.memory()?;
    let (free_mib, total_mib) = (free >> 20, total >> 20);
    tracing::info!(device = %name, gpu = gpu.name()?, free_mib, total_mib, "opened");
    Ok(Device::Cuda(gpu, dtype.weights(false)))
}

#[cfg(not(feature = "cuda"))]
fn open(name: &Name, dtype: Dtype) -> anyhow::Result<Device> {
    match name {
        Name::Cpu(cores) => Ok(Device::Cpu(dtype.weights(true), cores.clone())),
        Name::Cuda(_) => {
            bail!("this binary computes on the CPU alone: it was built without the feature `cuda`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> Name {
        Name::Cpu(Cores::default())
    }

    #[test]
    fn names_are_read() {
        assert_eq!("auto".parse(), Ok(Wanted::Auto));
        assert_eq!("cpu, cuda:3,cuda".parse(), Ok(Wanted::These(vec![cpu(), Name::Cuda(3), Name::Cuda(0)])));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cpu,", "cpu:", "cpu:x", "auto,cpu"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_copy_a_device_or_one_over_all() {
        let two = Wanted::These(vec![cpu(); 2]);
        let copies = Devices::open(&two, Dtype::Auto, false).unwrap();
        assert_eq!((copies.placements.len(), &*copies.names, &*copies.dtype), (2, "cpu,cpu", "f32"));
        assert_eq!(Devices::open(&two, Dtype::F32, true).unwrap().placements.len(), 1);
        assert_eq!(Devices::open(&two, Dtype::Int8All, false).unwrap().dtype, "int8-all");
        for dtype in Dtype::value_variants().iter().filter(|dtype| **dtype != Dtype::Auto) {
            assert!(word(*dtype).parse::<Weights>().is_ok(), "{dtype:?}");
        }
        let repeated = Wanted::These(vec![Name::Cuda(0), Name::Cuda(1), Name::Cuda(0)]);
        let error = Devices::open(&repeated, Dtype::Auto, true).unwrap_err().to_string();
        assert!(error.contains("takes cuda:0 once"), "{error}");
        let mixed = Wanted::These(vec![cpu(), Name::Cuda(0)]);
        assert!(Devices::open(&mixed, Dtype::Auto, true).is_err());
    }
}

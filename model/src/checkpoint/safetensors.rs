//! Weights in safetensors: one file, or shards listed by `model.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use qrm_kernels::mmap::{Mmap, map_file, release};
use rayon::prelude::*;
use safetensors::tensor::{Metadata, View, serialize_to_file};
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;

use super::weights::{Weights, dominant};
use super::{CheckpointError, INDEX, read_json};

/// Writes a file that whoever may read new files here may read: the crate gives it to its owner alone.
pub fn write_safetensors<S: AsRef<str> + Ord + Display, V: View>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: Option<HashMap<String, String>>,
    path: &Path,
) -> Result<(), SafeTensorError> {
    let mode = File::create(path)?.metadata()?.permissions();
    serialize_to_file(tensors, metadata, path)?;
    Ok(std::fs::set_permissions(path, mode)?)
}

/// One mapped file. Unmapped when its last tensor has been taken, so that it stops counting as resident.
struct Shard {
    file: String,
    map: Option<Mmap>,
    left: usize,
}

impl Shard {
    /// A tensor's bytes are not needed any more.
    fn done(&mut self, bytes: Range<usize>) {
        self.left -= 1;
        match &self.map {
            Some(map) if self.left > 0 => release(map, bytes),
            _ => self.map = None,
        }
    }
}

/// Where a tensor lies.
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The files' tensors, mapped and checked but not yet read.
pub(super) struct SafetensorsWeights {
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    stored_dtype: String,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
pub(super) struct Index {
    /// File of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads it, refusing file names that would lead out of the checkpoint's directory.
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let index: Self = read_json(path)?;
        match index.weight_map.values().find(|file| file.contains(['/', '\\']) || file.starts_with('.')) {
            None => Ok(index),
            Some(file) => Err(CheckpointError::Config {
                file: INDEX.into(),
                message: format!("{file:?} is not the name of a file beside it"),
            }),
        }
    }

    /// The shards, each once.
    pub(super) fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

impl SafetensorsWeights {
    /// Maps one file.
    pub(super) fn single(dir: &Path, file: &str) -> Result<Self, CheckpointError> {
        Self::open(dir, [file].into_iter().collect())
    }

    /// Maps the shards an index lists.
    pub(super) fn sharded(dir: &Path) -> Result<Self, CheckpointError> {
        let index = Index::read(&dir.join(INDEX))?;
        let weights = Self::open(dir, index.files())?;
        for (name, file) in &index.weight_map {
            let found = weights.entries.get(name).map(|entry| &weights.shards[entry.shard].file);
            if found != Some(file) {
                let message = format!("{INDEX} says {file} holds {name}, but it does not");
                return Err(CheckpointError::Weights(message));
            }
        }
        Ok(weights)
    }

    fn open(dir: &Path, files: BTreeSet<&str>) -> Result<Self, CheckpointError> {
        let (mut shards, mut entries) = (Vec::new(), BTreeMap::new());
        for (shard, file) in files.into_iter().enumerate() {
            let path = dir.join(file);
            let map = map_file(&path).map_err(|source| CheckpointError::io(&path, source))?;
            let broken = |message| CheckpointError::Weights(format!("{file}: {message}"));
            let (start, metadata) = read_header(&map).map_err(broken)?;
            let tensors = metadata.tensors();
            let (left, end) = (tensors.len(), start.saturating_add(metadata.data_len()));
            if end < map.len() {
                return Err(broken(format!("{} bytes after the last tensor", map.len() - end)));
            }
            for (name, info) in tensors {
                let (from, to) = info.data_offsets;
                let bytes = start.saturating_add(from)..start.saturating_add(to);
                if bytes.end > map.len() {
                    return Err(broken(format!(
                        "truncated: {name} ends at byte {} of {}",
                        bytes.end,
                        map.len()
                    )));
                }
                let entry = Entry { shard, dtype: info.dtype, shape: info.shape.clone(), bytes };
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(broken(format!("{name} is in another shard too")));
                }
            }
            shards.push(Shard { file: file.to_owned(), map: Some(map), left });
        }
        let names: Vec<_> = entries.values().map(|e| (e.dtype.to_string(), e.bytes.len())).collect();
        let stored_dtype = dominant(names.iter().map(|(dtype, bytes)| (dtype.as_str(), *bytes)));
        Ok(Self { shards, entries, stored_dtype })
    }
}

impl Weights for SafetensorsWeights {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn take(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let broken = |message| CheckpointError::Weights(format!("{name}: {message}"));
        let entry = self.entries.remove(name).ok_or_else(|| broken("missing".to_owned()))?;
        let shard = &mut self.shards[entry.shard];
        let bytes = shard.map.as_deref().and_then(|map| map.get(entry.bytes.clone()));
        let bytes = bytes.ok_or_else(|| broken(format!("{} is truncated", shard.file)))?;
        let values = to_f32(entry.dtype, bytes).ok_or_else(|| {
            broken(format!("stored as {}; only F32, F16 and BF16 are supported", entry.dtype))
        })?;
        shard.done(entry.bytes);
        Ok(values)
    }

    fn skip(&mut self, name: &str) {
        if let Some(entry) = self.entries.remove(name) {
            self.shards[entry.shard].done(entry.bytes);
        }
    }

    fn left(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    fn stored_dtype(&self) -> &str {
        &self.stored_dtype
    }
}

/// Where the data starts, and the checked table of tensors. `SafeTensors::read_metadata` would refuse a truncated
/// file without naming the tensor that is cut.
pub(super) fn read_header(file: &[u8]) -> Result<(usize, Metadata), String> {
    let (length, rest) = file.split_first_chunk().ok_or("truncated: no header")?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let header = rest.get(..length).ok_or("truncated in the header, or not safetensors")?;
    let metadata = serde_json::from_slice(header).map_err(|e| format!("the header makes no sense: {e}"))?;
    Ok((size_of::<u64>() + length, metadata))
}

/// Numbers that a thread converts at once.
const TASK: usize = 1 << 16;

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    // On all cores, as a file of many gigabytes is read so.
    let (pairs, quads) = (bytes.as_chunks().0, bytes.as_chunks().0);
    let (pairs, quads) = (pairs.par_iter().with_min_len(TASK), quads.par_iter().with_min_len(TASK));
    match dtype {
        Dtype::F32 => Some(quads.map(|b| f32::from_le_bytes(*b)).collect()),
        Dtype::F16 => Some(pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs.map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

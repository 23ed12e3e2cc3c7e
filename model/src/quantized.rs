//! Weights that were quantised to int8 once, kept in a file: a large checkpoint is then read a quarter as long, and not
//! quantised again at every start.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qrm_kernels::Panels;
use qrm_kernels::mmap::{Mmap, map_file};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorView};

use crate::checkpoint::{CheckpointError, write_safetensors};

/// Changes with what a file holds for the same checkpoint.
const FORMAT: &str = "int8-g16-2";
/// What a weight is made of: tensors of its name and these.
const PARTS: [&str; 3] = ["codes", "factors", "scales"];

/// One checkpoint's file in a directory of such: `VERSION-int8-g16-2.safetensors`.
pub(crate) struct Quantized {
    path: PathBuf,
    /// The file, if there was one, and where it has which tensor.
    found: Option<(Mmap, usize, Metadata)>,
    /// What was not in it.
    made: Vec<(String, Arc<Panels>)>,
}

impl Quantized {
    /// Looks for the file of a checkpoint's `version`.
    pub(crate) fn open(dir: &Path, version: &str) -> Result<Self, CheckpointError> {
        std::fs::create_dir_all(dir).map_err(|source| CheckpointError::io(dir, source))?;
        let path = dir.join(format!("{version}-{FORMAT}.safetensors"));
        let mut all = Self { path, found: None, made: Vec::new() };
        if all.path.exists() {
            let file = map_file(&all.path).map_err(|source| CheckpointError::io(&all.path, source))?;
            let (header, metadata) =
                SafeTensors::read_metadata(&file).map_err(|e| all.broken(&e.to_string()))?;
            all.found = Some((file, header + size_of::<u64>(), metadata));
        }
        Ok(all)
    }

    fn broken(&self, message: &str) -> CheckpointError {
        let file = self.path.display();
        CheckpointError::Weights(format!("{file}: {message}; delete the file to make it anew"))
    }

    /// The weight of that name, `[out, k]`, if it is there.
    pub(crate) fn get(&self, name: &str, out: usize, k: usize) -> Result<Option<Panels>, CheckpointError> {
        let part = |part: &str| self.bytes(&format!("{name}.{part}"));
        let [Some(codes), Some(factors), Some(scales)] = PARTS.map(part) else { return Ok(None) };
        let weight = Panels::from_int8_parts(out, k, [codes, factors, scales]);
        weight.map(Some).map_err(|e| self.broken(&format!("{name}: {e}")))
    }

    /// A tensor's bytes, if the file has them.
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        let (file, start, metadata) = self.found.as_ref()?;
        let (from, to) = metadata.info(tensor)?.data_offsets;
        file.get(*start..)?.get(from..to)
    }

    /// Keeps a weight for the file.
    pub(crate) fn put(&mut self, name: &str, weight: &Arc<Panels>) {
        self.made.push((name.to_owned(), weight.clone()));
    }

    /// Adds what was not there: the file has the weights of every `--dtype` that it was made for. It is complete or not
    /// there, whoever else writes it.
    pub(crate) fn save(self) -> Result<(), CheckpointError> {
        if self.made.is_empty() {
            return Ok(());
        }
        let mut tensors: BTreeMap<String, Cow<'_, [u8]>> = BTreeMap::new();
        for name in self.found.iter().flat_map(|(_, _, metadata)| metadata.tensors().into_keys()) {
            let bytes = self.bytes(&name).ok_or_else(|| self.broken(&format!("{name} is cut")))?;
            tensors.insert(name, bytes.into());
        }
        for (name, weight) in &self.made {
            for (part, bytes) in PARTS.iter().zip(weight.int8_parts().into_iter().flatten()) {
                tensors.insert(format!("{name}.{part}"), bytes);
            }
        }
        let write = || {
            let views = tensors.iter().map(|(name, bytes)| {
                let view = TensorView::new(Dtype::U8, vec![bytes.len()], bytes)?;
                Ok((name.as_str(), view))
            });
            let views = views.collect::<Result<Vec<_>, SafeTensorError>>().map_err(io::Error::other)?;
            // Gone with what is in it where this fails. Its name is nobody else's, of this machine or another.
            let directory = self.path.parent().unwrap_or(Path::new("."));
            let work = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(directory)?;
            let unfinished = work.path().join("weights");
            write_safetensors(views, None, &unfinished).map_err(io::Error::other)?;
            File::open(&unfinished)?.sync_all()?; // a name that survives a power cut is to have its content
            std::fs::rename(&unfinished, &self.path)
        };
        write().map_err(|source| CheckpointError::io(&self.path, source))
    }
}

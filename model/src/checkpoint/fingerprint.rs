//! A short name for what is in a checkpoint directory, the same wherever it lies.
//!
//! Files of up to 64 MiB are read whole. Of larger ones, blocks: [`BLOCKS`] of them from one end to the other, and the
//! first of each tensor in safetensors. So whatever changes a run of bytes longer than a 500th of its file changes the
//! name, and so does what changes most of any one tensor: a merged adapter, a trained head. Single numbers may change
//! unseen; hashing all of a large model would take longer than loading it, and on a network's disk so would many more blocks.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use sha2::{Digest, Sha256};

use super::safetensors::read_header;

/// Bytes that are read together.
const BLOCK: u64 = 16 << 10;
/// Blocks of a file that is not read whole.
const BLOCKS: u64 = 512;
/// The largest file that is.
const WHOLE: u64 = 64 << 20;
/// Ends of the names of files that make up a model: JSON, chat template, weights.
const PARTS: [&str; 4] = ["json", "jinja", "safetensors", "gguf"];

/// The first twelve hexadecimal digits of a SHA-256 over the files that make up the model.
pub(super) fn fingerprint(dir: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| PARTS.iter().any(|part| end == *part)));
    files.sort();
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for path in files {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(length.to_le_bytes());
        let mut starts = spread(length);
        if length > WHOLE && path.extension().is_some_and(|end| end == "safetensors") {
            starts.extend(tensors(&mut file)?.into_iter().filter(|start| *start < length));
        }
        for start in starts {
            bytes.clear();
            file.seek(SeekFrom::Start(start))?;
            file.by_ref().take(BLOCK).read_to_end(&mut bytes)?;
            hash.update(&bytes);
        }
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// Where the blocks of a file begin, both its ends among them.
fn spread(length: u64) -> Vec<u64> {
    let last = length.saturating_sub(BLOCK);
    let stride = if length > WHOLE { last / (BLOCKS - 1) } else { BLOCK };
    (0..last).step_by(usize::try_from(stride).unwrap_or(usize::MAX)).chain([last]).collect()
}

/// Where the tensors of a safetensors file begin; nowhere if it is none.
fn tensors(file: &mut File) -> io::Result<Vec<u64>> {
    /// What the format allows of a header.
    const MAX_HEADER: u64 = 100 << 20;
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(size_of::<u64>() as u64).read_to_end(&mut head)?;
    let length = head.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    file.by_ref().take(length.min(MAX_HEADER)).read_to_end(&mut head)?;
    let Ok((start, metadata)) = read_header(&head) else { return Ok(Vec::new()) };
    let tensors = metadata.tensors();
    let start = |tensor: &&TensorInfo| start.saturating_add(tensor.data_offsets.0) as u64;
    let mut starts: Vec<u64> = tensors.values().map(start).collect();
    starts.sort_unstable();
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn changes_with_any_byte_of_any_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let mut weights = vec![0u8; 3 << 20];
        write("config.json", b"{}");
        write("model.safetensors", &weights);
        write("empty.json", b"");
        let mut seen = vec![fingerprint(dir.path()).unwrap()];
        assert_eq!(seen[0].len(), 12);
        write("README.md", b"says nothing of the weights");
        assert_eq!(fingerprint(dir.path()).unwrap(), seen[0]);
        for at in [0, BLOCK as usize - 1, BLOCK as usize, (3 << 19) + 7, (3 << 20) - 1] {
            weights[at] = 1;
            write("model.safetensors", &weights);
            seen.push(fingerprint(dir.path()).unwrap());
        }
        for file in ["config.json", "chat_template.jinja", "chat_template.json"] {
            write(file, b"{ }");
            seen.push(fingerprint(dir.path()).unwrap());
        }
        let all = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn changes_with_every_tensor_of_a_large_file() {
        const LARGE: u64 = 192 << 20;
        const DATA: u64 = 1024;
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("model.safetensors")).unwrap();
        file.set_len(LARGE).unwrap();
        let mut change = |at: u64, bytes: &[u8]| {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
            fingerprint(dir.path()).unwrap()
        };
        // A norm that no block meets, between two matrices.
        let norm = spread(LARGE)[200] + BLOCK + 5000;
        assert!(spread(LARGE).iter().all(|start| *start > norm + 256 || start + BLOCK <= norm));
        let tensor = |from: u64, to: u64| {
            let offsets = [from - DATA, to - DATA];
            serde_json::json!({"dtype": "U8", "shape": [to - from], "data_offsets": offsets})
        };
        let header = serde_json::json!({
            "first": tensor(DATA, norm), "norm": tensor(norm, norm + 256), "last": tensor(norm + 256, LARGE),
        });
        change(0, &(DATA - 8).to_le_bytes());
        let mut seen = vec![change(8, format!("{:<1016}", header.to_string()).as_bytes())];
        seen.push(change(norm, &[1]));
        seen.push(change(LARGE / 3, &[1; 400 << 10]));
        seen.push(change(LARGE - 1, &[1]));
        let all = seen.len();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }
}

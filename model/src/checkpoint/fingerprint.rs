//! A short name for what is in a checkpoint directory, the same wherever it lies.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Of a larger file only so many bytes at either end are read: training changes all weights.
const END: u64 = 1 << 20;

/// The first twelve hexadecimal digits of a SHA-256 over the files that make up the model: JSON and weights.
pub(super) fn fingerprint(dir: &Path) -> io::Result<String> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "json" || e == "safetensors" || e == "gguf"));
    files.sort();
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for path in files {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(length.to_le_bytes());
        bytes.clear();
        file.by_ref().take(END).read_to_end(&mut bytes)?;
        if length > END {
            file.seek(SeekFrom::Start(END.max(length - END)))?;
            file.take(END).read_to_end(&mut bytes)?;
        }
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_with_any_end_of_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        let mut weights = vec![0u8; 3 << 20];
        write("config.json", b"{}");
        write("model.safetensors", &weights);
        let first = fingerprint(dir.path()).unwrap();
        assert_eq!(first.len(), 12);
        write("README.md", b"says nothing of the weights");
        assert_eq!(fingerprint(dir.path()).unwrap(), first);
        *weights.last_mut().unwrap() = 1;
        write("model.safetensors", &weights);
        let second = fingerprint(dir.path()).unwrap();
        write("config.json", b"{ }");
        let third = fingerprint(dir.path()).unwrap();
        assert!(first != second && second != third);
    }
}

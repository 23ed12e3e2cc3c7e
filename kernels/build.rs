//! With the feature `cuda`: every `src/cuda/*.cu` becomes a fatbin that the crate carries.
//!
//! The toolkit is the one at `CUDA_HOME` (or `CUDA_PATH`), else that of the `nvcc` in `PATH`, else `/usr/local/cuda`;
//! nothing of it is linked. `CUDA_COMPUTE_CAP` (`80,90`) says for which devices; by default for all that the kernels
//! know, and PTX for those that come later.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compute capabilities with code of their own. 9.0 with the instructions that no later device has (`wgmma`).
const TARGETS: &str = "80,86,89,90,100";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda");
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(error) = fatbins() {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn fatbins() -> Result<(), String> {
    let nvcc = nvcc();
    println!("cargo::rustc-env=QRM_CUDA_TOOLKIT={}", version(&nvcc)?);
    let out = PathBuf::from(std::env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let folder = std::fs::read_dir("src/cuda").map_err(|e| e.to_string())?;
    let mut sources: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let targets = targets();
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
    std::thread::scope(|scope| {
        let share = |sources| {
            let (nvcc, targets, out) = (&nvcc, &targets, &out);
            scope.spawn(move || compile(nvcc, targets, sources, out))
        };
        let workers: Vec<_> = sources.chunks(sources.len().div_ceil(jobs).max(1)).map(share).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a compile panicked".into())))
    })?;
    // A table for `gpu.rs`: the names and bytes of all modules.
    let mut table = String::from("[\n");
    for source in &sources {
        let fatbin = fatbin(source, &out);
        table += &format!("    ({:?}, include_bytes!({:?}).as_slice()),\n", stem(source), fatbin.display());
    }
    table += "]\n";
    std::fs::write(out.join("fatbins.rs"), table).map_err(|e| e.to_string())
}

fn nvcc() -> PathBuf {
    let named = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os);
    let named = named.map(|home| PathBuf::from(home).join("bin/nvcc")).find(|nvcc| nvcc.exists());
    let usual = || Some(PathBuf::from("/usr/local/cuda/bin/nvcc")).filter(|nvcc| nvcc.exists());
    let in_path = || Command::new("nvcc").arg("--version").output().is_ok().then(|| PathBuf::from("nvcc"));
    named.or_else(in_path).or_else(usual).unwrap_or_else(|| "nvcc".into())
}

/// Of the toolkit, `13.2`.
fn version(nvcc: &Path) -> Result<String, String> {
    let none =
        "the feature `cuda` needs the CUDA toolkit: set CUDA_HOME, or run kernels/cuda-check/toolkit.sh";
    let output = Command::new(nvcc).arg("--version").output().map_err(|e| format!("{none} ({e})"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    version.map(str::to_owned).ok_or_else(|| format!("{} says no version: {text}", nvcc.display()))
}

fn targets() -> Vec<String> {
    let asked = std::env::var("CUDA_COMPUTE_CAP").ok().filter(|list| !list.trim().is_empty());
    let list = asked.unwrap_or_else(|| TARGETS.into());
    let caps: Vec<String> = list.split(',').map(|cap| cap.trim().replace('.', "")).collect();
    let mut flags = Vec::new();
    for cap in &caps {
        let arch = if cap == "90" { "90a" } else { cap };
        flags.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    // For devices that come later.
    if let Some(least) =
        caps.iter().min_by_key(|cap| cap.trim_end_matches('a').parse::<u32>().unwrap_or(u32::MAX))
    {
        flags.push(format!("-gencode=arch=compute_{least},code=compute_{least}"));
    }
    flags
}

fn compile(nvcc: &Path, targets: &[String], sources: &[PathBuf], out: &Path) -> Result<(), String> {
    for source in sources {
        let output = Command::new(nvcc)
            .args(["-std=c++17", "-O3", "--fatbin", "-o"])
            .arg(fatbin(source, out))
            .args(targets)
            .arg(source)
            .output()
            .map_err(|e| format!("{}: {e}", nvcc.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{} does not compile:\n{said}", source.display()));
        }
    }
    Ok(())
}

fn stem(source: &Path) -> String {
    source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn fatbin(source: &Path, out: &Path) -> PathBuf {
    out.join(format!("{}.fatbin", stem(source)))
}

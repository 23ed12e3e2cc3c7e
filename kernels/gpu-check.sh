#!/usr/bin/env bash
# The CUDA side on a card: gpu-check.sh [REPORT]
# Every kernel and whole models against the CPU, the same under compute-sanitizer, and timings, beside PyTorch's where
# PYTHON (python3) has it. What is said goes into REPORT too (target/gpu-check.txt). Needs a driver and cuBLAS; the
# compiler comes from PyPI where there is none. Without a card, cuda-check/run.sh is the one to run.
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:-target/gpu-check.txt} python=${PYTHON:-python3} failed=()
mkdir -p "$(dirname "$report")"
exec > >(tee "$report") 2>&1

has() { command -v "$1" >/dev/null; }
loads() { "$python" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }
say() { printf '\n== %s\n' "$*"; }
stop() { echo "$*" && exit 1; }
# What fails does not keep the rest from being tried.
try() { say "$*" && { "$@" || failed+=("$*"); }; }
# Card 0 is the same one to nvidia-smi and to CUDA.
export CUDA_DEVICE_ORDER=PCI_BUS_ID

say "$(date -u +'%F %H:%M UTC'), revision $(git describe --always --dirty 2>/dev/null || echo unknown)"
has nvidia-smi || stop "nvidia-smi is not there: no driver of NVIDIA's, so no card to check on"
nvidia-smi --format=csv --query-gpu=name,compute_cap,driver_version,memory.total,power.limit ||
  stop "nvidia-smi is there, but no card answers"
nvidia-smi --format=csv --query-gpu=clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,temperature.gpu
CUDA_HOME=$(kernels/cuda-check/toolkit.sh) || stop "no CUDA toolkit is there, and none could be fetched"
export CUDA_HOME LD_LIBRARY_PATH="$CUDA_HOME/lib64:$CUDA_HOME/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
"$CUDA_HOME/bin/nvcc" --version | grep release
# The names that cudarc looks for.
loads libcublasLt.so || loads libcublasLt.so.13 || loads libcublasLt.so.12 ||
  stop "libcublasLt is not there: a toolkit has it, so has PyPI's nvidia-cublas (for LD_LIBRARY_PATH)"

try cargo test -p qrm-kernels --features cuda
try cargo test -p qrm-model --features cuda

if has compute-sanitizer; then
  # Calls that return errors are the tests' own business, and some of the programs never come to the card.
  sanitized() { # TOOL PACKAGE [ARGUMENTS OF THE TESTS]
    local runner="compute-sanitizer --require-cuda-init=no --error-exitcode=1 --tool=$1"
    try cargo --config "target.'cfg(all())'.runner='$runner'" test -p "$2" --features cuda --tests -- "${@:3}"
  }
  for tool in "memcheck --report-api-errors=no" racecheck synccheck; do
    for package in qrm-kernels qrm-model; do sanitized "$tool" "$package"; done
  done
  # It does not see what cuBLASLt stores on Hopper: whatever reads a multiply's results would be reported.
  sanitized initcheck qrm-kernels --skip token_reward_in_all_forms
else
  say "compute-sanitizer is not there (a toolkit has it, and PyPI's nvidia-cuda-sanitizer-api): skipped"
fi

# Timings say little without the clocks that they were taken at.
scratch=$(mktemp -d)
clocks=$scratch/clocks
nvidia-smi --format=csv --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --id=0 --loop=1 >"$clocks" &
sampler=$!
trap 'kill "$sampler" 2>/dev/null || true; rm -rf "$scratch"' EXIT
try cargo run --release -p qrm-benches --features cuda -- cuda
if "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  try "$python" kernels/cuda-check/torch_baseline.py
  if "$python" -c 'import transformers' 2>/dev/null; then
    # A checkpoint of 2.5 GB among the temporary files.
    try "$python" kernels/cuda-check/torch_model.py "$scratch" --size 1b
    decoder=(cargo run --release -p qrm-benches --features cuda -- decoder --device cuda:0 --max-batch-tokens 16384)
    [ ! -e "$scratch/work.jsonl" ] ||
      try "${decoder[@]}" --model "$scratch/model" --input "$scratch/work.jsonl" --dtype bf16
  else
    say "$python has no transformers: whole models skipped"
  fi
else
  say "$python has no torch that finds the card (PYTHON names another): skipped"
fi
kill "$sampler" || true
say "card 0 meanwhile, once a second: least and most"
awk -F ', ' 'NR == 1 { split($0, name); next }
  NR == 2 { for (i = 1; i <= NF; i++) low[i] = high[i] = $i + 0 }
  { for (i = 1; i <= NF; i++) { x = $i + 0; if (x < low[i]) low[i] = x; if (x > high[i]) high[i] = x } }
  END { for (i = 1; i <= NF; i++) print name[i] ": " low[i] " to " high[i] }' "$clocks"

say "the report is $report"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi

#!/usr/bin/env bash
# What can be known of the CUDA side without a card: it compiles for all of them into the instructions that are meant,
# its arithmetic is right where the host executes it, and the Rust side fits. ../gpu-check.sh has the rest. Needs
# Python, g++ and, the first time, PyPI.
set -euo pipefail
cd "$(dirname "$0")/../.."
CUDA_HOME=$(kernels/cuda-check/toolkit.sh)
export CUDA_HOME
python3 kernels/cuda-check/compile.py
kernels/cuda-check/host/run.sh
# The kernels were compiled for all cards above: one is enough here.
CUDA_COMPUTE_CAP=80 cargo clippy --workspace --all-targets --features cuda -- -D warnings

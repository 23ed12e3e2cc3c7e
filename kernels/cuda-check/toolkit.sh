#!/usr/bin/env bash
# Prints the directory of a CUDA toolkit: the one that CUDA_HOME names or that PATH has, else what toolkit.txt lists,
# fetched from PyPI (120 MB) into target/cuda, once. That needs Python, with pip or with venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -n "${CUDA_HOME:-}" ]; then
  [ -x "$CUDA_HOME/bin/nvcc" ] || { echo "there is no bin/nvcc in CUDA_HOME, $CUDA_HOME" >&2 && exit 1; }
  echo "$CUDA_HOME" && exit
fi
if nvcc=$(command -v nvcc); then
  nvcc=$(readlink -f "$nvcc")
  echo "${nvcc%/bin/nvcc}" && exit
fi
wanted=kernels/cuda-check/toolkit.txt root=$PWD/target/cuda
mkdir -p "$root"
# Two that come at once must not unpack over each other.
exec 9>"$root/lock" && flock 9
# The list is copied last, so that its copy stands for all that it lists.
if ! cmp --quiet "$wanted" "$root/toolkit/ready"; then
  python=python3
  # With a target of its own, pip leaves a Python that a distribution manages alone, and so may be used there.
  if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$root/venv" >&2
    python=$root/venv/bin/python
  fi
  rm -rf "$root/toolkit"
  PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --target "$root/toolkit" --requirement "$wanted" >&2
  cp "$wanted" "$root/toolkit/ready"
fi
echo "$root/toolkit/nvidia/cu13"

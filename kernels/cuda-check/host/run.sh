#!/usr/bin/env bash
# Runs the bodies of the CUDA kernels on the host: compared with f64, under AddressSanitizer and some of
# UndefinedBehaviorSanitizer, under ThreadSanitizer; then with faults planted, each of which must be found.
#
# Needs g++ with its sanitizers and CUDA_HOME, whose include/ has the CUDA headers. No GPU.
set -euo pipefail
host=$(cd "$(dirname "$0")" && pwd)
kernels=$host/../../src/cuda
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
addresses=address,alignment,bounds,signed-integer-overflow
export TSAN_OPTIONS=halt_on_error=1 ASAN_OPTIONS=detect_stack_use_after_return=0

# The native instructions fuse a multiply and an addition, as a GPU does.
compile() {
  g++ -std=c++20 -march=native -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi \
    -isystem "$CUDA_HOME/include" "$@"
}

# SANITIZERS …: compiles what is checked.
checked() { compile -O1 -g1 ${1:+-fsanitize=$1 -fno-sanitize-recover=all} "${@:2}"; }

# SANITIZERS TEST KERNELS: builds a test with the kernels of a folder, and runs it.
run() {
  local binary=$out/$BASHPID
  checked "$1" -include "$out/headers.$1/check.hpp" -I"$3" "$host/$2.cpp" "$out"/*.o -o "$binary"
  timeout 600 "$binary"
}

# SANITIZERS TEST: a line when nothing was found, all there is otherwise.
clean() {
  local log=$out/$BASHPID.log
  if run "$1" "$2" "$kernels" >"$log" 2>&1; then echo "$2 under $1: clean"; else cat "$log"; return 1; fi
}

# SANITIZERS TEST FILE EDIT REPORT: what is reported of a kernel's file after this edit with sed.
planted() {
  local edited=$out/$BASHPID.kernels log=$out/$BASHPID.log
  cp -r "$kernels" "$edited"
  sed -i "$4" "$edited/$3"
  if cmp -s "$kernels/$3" "$edited/$3"; then echo "planted in $3: '$4' changes nothing"; return 1; fi
  if run "$1" "$2" "$edited" >"$log" 2>&1; then echo "planted in $3: '$4' was not found"; return 1; fi
  grep -qE "$5" "$log" || { cat "$log"; return 1; }
  echo "planted in $3, '$4': $(grep -m1 -E "$5" "$log" | sed "s#$edited/##; s#$host/##")"
}

# As many at once as there are cores; what they say comes in order.
jobs=()
job() {
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
  "$@" >"$out/job.${#jobs[@]}" 2>&1 &
  jobs+=($!)
}

# Without sanitizers whatever is checked: they must see no more of waiting than it promises.
for source in "$host"/shim/*.cpp; do
  compile -O2 -c "$source" -o "$out/$(basename "$source" .cpp).o"
done
# What every test includes, once for each set of sanitizers.
for sanitizers in '' "$addresses" thread; do
  mkdir "$out/headers.$sanitizers"
  checked "$sanitizers" -x c++-header "$host/check.hpp" -o "$out/headers.$sanitizers/check.hpp.gch" 2>/dev/null
done
for source in "$host"/*.cpp; do job run "" "$(basename "$source" .cpp)" "$kernels"; done
for source in "$host"/*.cpp; do
  for sanitizers in "$addresses" thread; do job clean "$sanitizers" "$(basename "$source" .cpp)"; done
done

race='SUMMARY: ThreadSanitizer: data race'
job planted thread rows common.cuh '/if (lane_id() == 0) sums/{n;d}' "$race"
job planted thread rows common.cuh '/before the next call/d' "$race"
job planted thread attention attention.cu '/gather(a, block, 0, tile)/{n;d}' "$race"
job planted thread attention_mma attention_mma.cu '/the block is here/d' "$race"
overflow='SUMMARY: AddressSanitizer: heap-buffer-overflow'
job planted "$addresses" rows common.cuh 's|i < length / W;|i <= length / W;|' "$overflow"
job planted "$addresses" attention_mma attention_mma.cu 's/STRIDE = D + 8/STRIDE = D + 16/' "$overflow"
job planted "$addresses" rows common.cuh 's/length % W == 0 && stride % W == 0/length >= W/' 'misaligned address'
job planted '' attention_mma attention_mma.cu '/cp_async_wait/{N;s/.*\n\(.*the block is here\)/\1/}' 'before its copies'
job planted '' attention_mma attention_mma.cu 's/^    __syncthreads/    if (warp_id() == 0) __syncthreads/' diverged
job planted thread token_reward token_reward_mma.cu '/the next stage is there/d' "$race"
job planted thread token_reward logits_reduce.cu '/__syncthreads/d' "$race"
job planted thread token_reward_wgmma token_reward_wgmma.cu '/wgmma_wait<1>/d' "$race"
job planted thread token_reward_wgmma token_reward_wgmma.cu '/wait(shared.full/d' "$race"
job planted thread attention_wgmma attention_wgmma.cu '/wait(shared.full/d' "$race"
job planted thread attention_wgmma attention_wgmma.cu '/wait(shared.empty/d' "$race"
job planted '' attention_wgmma attention_wgmma.cu 's/LATE>();/LATE + 1>();/' FAILED
job planted '' attention_wgmma attention_wgmma.cu '/copies_are_seen();/d' 'without a proxy fence'
job planted '' attention_wgmma attention_wgmma.cu 's/j \* 16 \* 128/j * 8 * 128/' FAILED
job planted "$addresses" token_reward token_reward_mma.cu 's/first + row < rows && //' "$overflow"
job planted '' token_reward token_reward_mma.cu 's/cp_async_wait<STAGES - 2>/cp_async_wait<STAGES - 1>/' FAILED
job planted '' token_reward_wgmma wgmma.cuh 's|eight_rows = 8|eight_rows = 4|' FAILED
job planted '' token_reward_wgmma token_reward_wgmma.cu 's/CONSUMER_WARPS \* cluster_size()/CONSUMER_WARPS/' diverged

failed=0
for i in "${!jobs[@]}"; do
  wait "${jobs[$i]}" || failed=1
  cat "$out/job.$i"
done
exit $failed

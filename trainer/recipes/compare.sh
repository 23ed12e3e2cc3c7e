#!/usr/bin/env bash
# Every kind of reward model on the arithmetic task, three seeds each: compare.sh DIR, after arithmetic.sh DIR.
# Writes DIR/compare/KIND-SEED-SET.json and prints the table. Started again, it goes on where it was. STEPS makes it shorter.
set -euo pipefail
dir=$(cd "${1:?usage: compare.sh DIR}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
cargo build --release -p qrm-trainer
trainer=target/release/qrm-trainer
backbone=$dir/backbone/model
steps=${STEPS:-550}
mkdir -p "$dir/compare"

# judge NAME MODEL: on the three test sets.
judge() {
  local name=$1 model=$2 set
  for set in sampled greedy slips; do
    "$trainer" evaluate --model "$model" --data "$dir/test-$set.jsonl" --noise 0 > "$dir/compare/$name-$set.json"
  done
}

# Step-level models learn from the same policy's answers, labelled line by line by the verifier.
labelled=$dir/steps.jsonl
[ -e "$labelled" ] || {
  "$trainer" task sample --rows steps --model "$dir/policy/model" --most-events 3 --problems 4000 --samples 8 \
    --output "$labelled.partial"
  mv "$labelled.partial" "$labelled"
}

judge backbone "$backbone"
for seed in 0 1 2; do
  for name in qrm-vocab qrm-scalar orm prm dpo; do
    run=$dir/compare/$name-$seed
    batch=32 lr=1e-4
    data=(--train "$dir/pairs.jsonl" --eval "$dir/validation.jsonl" --best)
    case $name in
      qrm-vocab) kind=(qrm --head vocab --beta 10 --gamma 1 --sft-weight 5) ;;
      # A scalar head starts from noise and needs larger steps than weights that only have to be bent.
      qrm-scalar) kind=(qrm --head scalar --beta 10 --gamma 1) lr=3e-4 ;;
      orm) kind=(orm) lr=3e-4 ;;
      prm) kind=(prm) data=(--train "$labelled") batch=64 lr=3e-4 ;;
      dpo) kind=(dpo) ;;
    esac
    [ -e "$run/model" ] || "$trainer" "${kind[@]}" "${data[@]}" --model "$backbone" --output "$run" --seed "$seed" \
      --steps "$steps" --batch "$batch" --lr "$lr" --micro-batch-tokens 8192 --eval-every 100 --save-every 200 --resume
    judge "$name-$seed" "$run/model"
  done
done
python3 "$here/table.py" "$dir/compare"

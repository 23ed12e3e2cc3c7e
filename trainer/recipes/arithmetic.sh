#!/usr/bin/env bash
# Makes the model that the server serves when none is named, from nothing: arithmetic.sh DIR
#
# A policy learns the arithmetic task well enough to be right in two answers of five; its answers, right against wrong
# ones to the same problem, are the pairs. The same model trained on is the backbone of the Q-RM: as in the paper,
# stronger than the policy it judges. Started again, it goes on where it was.
set -euo pipefail
dir=${1:?usage: arithmetic.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")/../.."
cargo build --release -p qrm-trainer
trainer=target/release/qrm-trainer

# rows NAME SUBCOMMAND...: a JSONL file, whole or not at all.
rows() {
  local file=$dir/$1.jsonl
  shift
  [ -e "$file" ] || { "$trainer" task "$@" --most-events 3 --output "$file.partial" && mv "$file.partial" "$file"; }
}
# train NAME SUBCOMMAND...: a model in DIR/NAME/model.
train() {
  local out=$dir/$1
  shift
  [ -e "$out/model" ] || "$trainer" "$@" --output "$out" --micro-batch-tokens 8192 --save-every 200 --resume
}

[ -e "$dir/start/config.json" ] || "$trainer" task start --hidden-size 96 --heads 3 --intermediate-size 256 --output "$dir/start"
rows answers data --rows answers --count 200000 --seed 1
rows answers-validation data --rows answers --split validation --count 400 --seed 1

sft=(sft --train "$dir/answers.jsonl" --eval "$dir/answers-validation.jsonl" --batch 32 --eval-every 400)
train policy "${sft[@]}" --model "$dir/start" --steps 2400 --lr 1.5e-3
train backbone "${sft[@]}" --model "$dir/policy/model" --steps 7200 --lr 1.5e-3 --warmup 0.03 --seed 1

# What the policy gets wrong: sampled, and with all its confidence (greedy); and slips of known kinds.
policy=(sample --model "$dir/policy/model")
rows pairs "${policy[@]}" --problems 16000 --samples 8 --pairs 4 --worked
rows validation "${policy[@]}" --split validation --problems 600 --pairs 1
rows test-sampled "${policy[@]}" --split test --problems 1500 --pairs 1
rows test-greedy "${policy[@]}" --split test --problems 3000 --samples 1 --temperature 0 --worked --seed 1
rows test-slips data --rows slips --split test --count 1000

# Pairs differ in a few tokens of about forty, so their mean logits differ by tenths: β is larger than for long answers.
train qrm qrm --model "$dir/backbone/model" --train "$dir/pairs.jsonl" --eval "$dir/validation.jsonl" --best \
  --batch 32 --steps 2200 --lr 1e-4 --eval-every 100 --beta 10 --gamma 1 --sft-weight 5 --store f16
for set in sampled greedy slips; do
  for model in backbone qrm; do
    echo "$model, $set:"
    "$trainer" evaluate --model "$dir/$model/model" --data "$dir/test-$set.jsonl" --noise 0
  done
done

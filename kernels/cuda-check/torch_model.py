"""A whole model as Transformers scores it on a GPU, for `qrm-benches decoder --device cuda:0` to be compared with.

    python3 kernels/cuda-check/torch_model.py DIR [--size 1b|8b] [--prompts 32] [--group 8]

Makes DIR/model, a Llama of made-up weights in bf16, and DIR/work.jsonl, groups of responses below one prompt, and
times the scoring of them: sorted by length, padded in batches, bf16, sdpa, the head on the response's positions alone.
A row of the file carries the log φ that it found, so that the other's agreement is seen too. The median of the runs
counts.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig

SIZES = {
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
               num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False),
}
PROMPT, RESPONSE = (192, 320), (128, 512)
BATCH_TOKENS = 16384  # with padding
HEAD_ROWS = 4096
RUNS = 3


def made(directory: Path, size: str):
    """The model, on the GPU and in DIR/model."""
    config = LlamaConfig(**SIZES[size], max_position_embeddings=8192, rope_theta=5e5)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    # Scores that differ: hidden states leave the last norm with a mean square of 1.
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=3 / config.hidden_size**0.5)
    model.save_pretrained(directory / "model")
    # A checkpoint has a tokenizer; the work is token ids.
    words = {str(token): token for token in range(config.vocab_size)}
    Tokenizer(WordLevel(words, unk_token="0")).save(str(directory / "model/tokenizer.json"))
    return model


def workload(prompts: int, group: int, vocabulary: int):
    chance = random.Random(0)
    ids = lambda low, high: [chance.randrange(vocabulary) for _ in range(chance.randint(low, high))]
    work = []
    for _ in range(prompts):
        prompt = ids(*PROMPT)
        work += [{"prompt": prompt, "response": ids(*RESPONSE)} for _ in range(group)]
    return work


def batches(work):
    """Places in `work`, neighbours in length, as many as fit with their padding."""
    order = sorted(range(len(work)), key=lambda i: -len(work[i]["prompt"]) - len(work[i]["response"]))
    while order:
        longest = sum(map(len, work[order[0]].values()))
        count = max(1, BATCH_TOKENS // longest)
        yield order[:count]
        order = order[count:]


@torch.inference_mode()
def score(model, work):
    answers = [None] * len(work)
    for batch in batches(work):
        rows = [torch.tensor(work[i]["prompt"] + work[i]["response"]) for i in batch]
        pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).cuda()
        ids, mask = pad(rows), pad([torch.ones_like(row) for row in rows])
        hidden = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        spans = [(len(work[i]["prompt"]) - 1, len(work[i]["response"])) for i in batch]
        read = torch.cat([row[start : start + count] for row, (start, count) in zip(hidden, spans)])
        taken = torch.cat([torch.tensor(work[i]["response"]) for i in batch]).cuda()
        found = []
        for rows, targets in zip(read.split(HEAD_ROWS), taken.split(HEAD_ROWS)):
            logits = model.get_output_embeddings()(rows).float()
            found.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1))
        found = torch.cat(found).cpu().split([count for _, count in spans])
        for i, log_phi in zip(batch, found):
            answers[i] = log_phi.tolist()
    return answers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group", type=int, default=8)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    model = made(args.directory, args.size)
    work = workload(args.prompts, args.group, model.config.vocab_size)
    tokens = sum(len(t["prompt"]) + len(t["response"]) for t in work)
    answers = score(model, work[: len(work) // 4])  # the first kernels are loaded
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        answers = score(model, work)
        times.append(time.perf_counter() - start)
    with (args.directory / "work.jsonl").open("w") as file:
        for trajectory, log_phi in zip(work, answers):
            print(json.dumps(trajectory | {"log_phi": log_phi}), file=file)
    print(f"transformers {args.size}, torch {torch.__version__}, {torch.cuda.get_device_name()}: "
          f"{len(work)} trajectories, {tokens} tokens, {tokens / statistics.median(times):.0f} tokens/s, "
          f"peak {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()

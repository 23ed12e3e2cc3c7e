"""One workload for all: the token ids of prompts and of the answers under them.

    workload.py MODEL OUTPUT [--pairs FILE.jsonl] [--answers 32] [--group 1] [--shared-prefix TOKENS]

MODEL is a directory with a tokenizer. A line of OUTPUT is a trajectory: {"prompt": [ids], "response": [ids]}.
"""

import argparse
import itertools
import json
from pathlib import Path

from problems import problems

Ids = list[int]


def pairs(trajectories: int, group: int) -> list[tuple[int, int]]:
    """Where the chosen and the rejected answer to each prompt are."""
    if group == 1:
        return [(i, i + trajectories // 2) for i in range(trajectories // 2)]
    return [(i, i + 1) for i in range(0, trajectories, group)]


def trajectories(rows: list[tuple[Ids, Ids, Ids]], group: int) -> list[tuple[Ids, Ids]]:
    """From (prompt, chosen, rejected): `group` answers under each prompt.

    With a group of one, every chosen answer comes before every rejected one: a pair's two trajectories are then too far apart
    for a batch to have both. Larger groups are the same two answers turned round, each by one token more, so that no two begin
    alike.
    """
    if group == 1:
        return [(prompt, chosen) for prompt, chosen, _ in rows] + [(prompt, rejected) for prompt, _, rejected in rows]
    turned = lambda ids, by: ids[by % len(ids) :] + ids[: by % len(ids)]
    return [(prompt, turned(answers[i % 2], i)) for prompt, *answers in rows for i in range(group)]


def tokenised(tokenizer, row: dict[str, str]) -> tuple[Ids, Ids, Ids]:
    if tokenizer.chat_template:
        message = [{"role": "user", "content": row["instruction"]}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    else:
        text = row["instruction"] + "\n"
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return ids(text), ids(row["chosen"].strip()) + end, ids(row["rejected"].strip()) + end


def few_shots(tokenizer, tokens: int) -> Ids:
    """`tokens` tokens of worked examples."""
    ids: Ids = []
    for row in problems(tokens, seed=2):  # an example is more than one token
        if len(ids) >= tokens:
            break
        ids += tokenizer(f"{row['instruction']}\n{row['chosen']}\n\n", add_special_tokens=False)["input_ids"]
    return ids[:tokens]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--group", type=int, default=1)
    parser.add_argument("--shared-prefix", type=int, default=0)
    args = parser.parse_args()

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = max(1, args.answers // max(2, args.group))
    if args.pairs:
        with args.pairs.open() as file:
            rows = [json.loads(line) for line in itertools.islice(file, prompts)]
    else:
        rows = problems(prompts, seed=1)
    prefix = few_shots(tokenizer, args.shared_prefix)
    rows = [(prefix + prompt, *answers) for prompt, *answers in (tokenised(tokenizer, row) for row in rows)]
    with args.output.open("w") as file:
        for prompt, response in trajectories(rows, args.group):
            print(json.dumps({"prompt": prompt, "response": response}), file=file)


if __name__ == "__main__":
    main()

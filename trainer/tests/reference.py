"""The Q-RM loss and its gradients by PyTorch in f64, for `tests/gradients.rs`.

usage: python reference.py FIXTURES > pytorch.json    (needs torch, transformers)
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

PAIRS = [
    ([5, 9, 2, 77], [40, 41, 3], [40, 300, 8, 9, 12]),
    ([5, 1], [6], [7, 8]),
    ([100, 101, 102], [200, 201, 202, 203], [200, 17]),
]
BETA, GAMMA = 0.2, 2.0


def run(root, name, sft):
    model = AutoModelForCausalLM.from_pretrained(f"{root}/{name}", dtype=torch.float64)

    def mean(prompt, response, of):
        logits = model(torch.tensor([prompt + response])).logits[0]
        rows = logits[len(prompt) - 1 : len(prompt) + len(response) - 1]
        return of(rows).gather(1, torch.tensor(response)[:, None]).mean()

    margins = torch.stack([mean(p, c, lambda z: z) - mean(p, r, lambda z: z) for p, c, r in PAIRS])
    loss = -torch.nn.functional.logsigmoid(BETA * margins - GAMMA).mean()
    loss = loss - sft * torch.stack([mean(p, c, lambda z: z.log_softmax(-1)) for p, c, _ in PAIRS]).mean()
    loss.backward()
    gradients = {}
    for key, p in model.named_parameters():
        flat = p.grad.flatten()
        at = [i * (len(flat) // 7) for i in range(7)]
        gradients[key] = {"norm": flat.norm().item(), "at": at, "values": flat[at].tolist()}
    return {"checkpoint": name, "sft": sft, "loss": loss.item(), "gradients": gradients}


pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
results = [run(sys.argv[1], name, 0.0) for name in ("qwen2", "qwen3", "llama-tied")]
results.append(run(sys.argv[1], "qwen2", 0.7))
print(json.dumps({"pairs": pairs, "beta": BETA, "gamma": GAMMA, "results": results}, indent=1))

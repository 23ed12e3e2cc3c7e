"""A loop of one's own in PyTorch: python reinforce.py POLICY URL STEPS (the policy has the reward model's tokenizer)."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qrm_client import Client, Input

policy_dir, url, steps = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(policy_dir)
policy = AutoModelForCausalLM.from_pretrained(policy_dir)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5)
prompt = tokenizer("Ada has 3 pens and buys 4. How many pens does Ada have?", return_tensors="pt").input_ids
with Client(url) as client:
    for step in range(int(steps)):
        sampled = policy.generate(prompt, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=8,
                                  max_new_tokens=16, pad_token_id=tokenizer.eos_token_id)
        responses = sampled[:, prompt.size(1):]
        ends = (responses == tokenizer.eos_token_id).int().cumsum(1)
        mask = (ends - (responses == tokenizer.eos_token_id).int()) == 0  # up to and with the first end of sequence
        ids = [row[keep].tolist() for row, keep in zip(responses, mask)]
        scored = client.score([Input(prompt[0].tolist(), ids)], normalize="standard")
        advantages = torch.from_numpy(scored.padded(responses.size(1)))
        logits = policy(sampled).logits[:, prompt.size(1) - 1 : -1]
        log_pi = logits.log_softmax(-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)
        loss = -(advantages * log_pi * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.4f}, mean reward {scored.mean:.4f}")

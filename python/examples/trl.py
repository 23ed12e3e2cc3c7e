"""GRPO with a reward for every token: python examples/trl.py MODEL PROMPTS.jsonl (rows with a "prompt")."""

import sys

from datasets import load_dataset
from trl import GRPOConfig

from qrm_client import Client
from qrm_client.adapters.trl import TokenGRPOTrainer, reward_function

model, prompts = sys.argv[1:]
client = Client("http://127.0.0.1:8080")
TokenGRPOTrainer(
    model=model,
    args=GRPOConfig(output_dir="out", num_generations=8, max_completion_length=512, learning_rate=1e-6),
    train_dataset=load_dataset("json", data_files=prompts, split="train"),
    reward_funcs=reward_function(client),
    client=client,
    alignment="ids",  # "spans" where the reward model has another tokenizer
    sequence_weight=1.0,
    token_weight=0.5,
).train()

"""A real GRPO run of TRL whose token rewards come from a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

from trl import GRPOConfig  # noqa: E402

from qrm_client import Client, Input  # noqa: E402
from qrm_client.adapters.trl import TokenGRPOTrainer, reward_function  # noqa: E402

from ..conftest import FIXTURES  # noqa: E402


def test_a_loop_of_ones_own(server):
    example = Path(__file__).parents[2] / "examples" / "reinforce.py"
    command = [sys.executable, str(example), str(FIXTURES / "qwen2"), server.url, "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("mean reward") == 2


def policy():
    """A few thousand weights with the reward model's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURES / "qwen2")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=509, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=0)
    return transformers.LlamaForCausalLM(config), tokenizer


@pytest.mark.parametrize("alignment", ["ids", "spans"])
def test_three_steps(server, tmp_path, alignment):
    model, tokenizer = policy()
    prompts = ["Ada has 3 pens and buys 4.", "Omar has 9 cups and loses 2.", "Lea has 5 nuts.", "Kim eats 1 of 8 figs."]
    seen = []

    class Watched(TokenGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            seen.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)})
            return batch

    config = GRPOConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, num_generations=2, max_completion_length=12,
        learning_rate=1e-2, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", seed=1, bf16=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with Client(server.url) as client:
        trainer = Watched(
            model=model, args=config, processing_class=tokenizer, client=client, alignment=alignment,
            reward_funcs=reward_function(client),
            train_dataset=datasets.Dataset.from_dict({"prompt": prompts}))
        trainer.train()
        assert trainer.state.global_step == 3 and len(seen) >= 3
        assert any(not torch.equal(before[name], p.cpu()) for name, p in model.named_parameters())
        for batch in seen:
            mask = batch["completion_mask"].bool()
            assert batch["advantages"].shape == batch["completion_ids"].shape
            assert not batch["advantages"][~mask].any()
            rows = zip(batch["prompt_ids"], batch["prompt_mask"].bool(), batch["completion_ids"], mask, batch["token_rewards"])
            for prompt, prompt_mask, completion, completion_mask, rewards in rows:
                # The server's numbers for these very ids, asked for anew.
                direct = client.score([Input.one(prompt[prompt_mask].tolist(), completion[completion_mask].tolist())])[0]
                got = rewards[completion_mask].numpy()
                if alignment == "ids":
                    np.testing.assert_array_equal(got, direct.rewards)
                assert got.shape == direct.rewards.shape and not rewards[~completion_mask].any()
            tokens = batch["token_rewards"][mask].double()
            standard = (tokens - tokens.mean()) / tokens.std(unbiased=False)
            sequence = batch["advantages"][mask].double() - standard
            # What is left is GRPO's own advantage: one number a row.
            lengths = mask.sum(1).tolist()
            for part in sequence.split(lengths):
                assert part.max() - part.min() < 1e-4

"""A real GRPO run of TRL whose token rewards come from a real server."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from qrm_client import Client, Input, token_spans  # noqa: E402
from qrm_client.adapters.trl import TokenGRPOTrainer, reward_function  # noqa: E402

from ..conftest import FIXTURES  # noqa: E402


def policy():
    """A few thousand weights with the reward model's tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURES / "qwen2")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=509, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=0)
    return transformers.LlamaForCausalLM(config), tokenizer


def test_an_empty_answer_has_no_reward(server):
    with Client(server.url) as client:
        reward = reward_function(client)
        first, empty, last = reward(["Two?", "Two?", "Four?"], ["Two.", "", "Four."])
        assert empty is None and [first] == reward(["Two?"], ["Two."]) and [last] == reward(["Four?"], ["Four."])
        assert reward(["Two?"], [""]) == [None]
        with_end = reward_function(client, append_eos=True)
        assert with_end(["Two?"], [""]) == [client.score([Input.one("Two?", "")], append_eos=True)[0].score]


def test_an_answer_with_tools_is_judged_after_them(server):
    asked = [{"role": "user", "content": "What is 3 + 4?"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}]}
    result, answer = {"role": "tool", "name": "add", "content": "7"}, {"role": "assistant", "content": "It is 7."}
    before = [*asked, {"role": "assistant", "content": '{"name": "add", "arguments": {"a": 3}}'}, {"role": "tool", "content": "7"}]
    with Client(server.url) as client:
        for append_eos in (False, True):
            reward = reward_function(client, append_eos=append_eos)
            scored = client.score([Input.one(before, "It is 7.")], append_eos=append_eos)[0]
            assert reward([asked] * 3, [[call, result, answer], [call], [call, result]]) == [scored.score, None, None]


@pytest.mark.parametrize("alignment", ["ids", "spans"])
def test_three_steps(server, tmp_path, monkeypatch, alignment):
    model, tokenizer = policy()
    prompts = ["Ada has 3 pens and buys 4.", "Omar has 9 cups and loses 2.", "Lea has 5 nuts.", "Kim eats 1 of 8 figs."]
    if alignment == "spans":  # a template of the policy's own, that the reward model should not see
        tokenizer.chat_template = "{% for message in messages %}Q: {{ message['content'] }} A:{% endfor %}"
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    own, seen = [], []
    grpo = GRPOTrainer._generate_and_score_completions

    def watched(self, inputs):
        batch = grpo(self, inputs)
        own.append(batch["advantages"].clone())
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watched)

    class Watched(TokenGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            seen.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)} | {"inputs": inputs})
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
        assert trainer.state.global_step == 3 and len(seen) == len(own) >= 3
        assert any(not torch.equal(before[name], p.cpu()) for name, p in model.named_parameters())
        for batch, advantages in zip(seen, own):
            mask = batch["completion_mask"].bool()
            assert batch["advantages"].shape == batch["completion_ids"].shape
            assert not batch["advantages"][~mask].any()
            rows = zip(batch["inputs"], batch["prompt_ids"], batch["prompt_mask"].bool(), batch["completion_ids"], mask, batch["token_rewards"])
            for example, prompt, prompt_mask, completion, completion_mask, rewards in rows:
                # The server's numbers for these very ids, asked for anew.
                ids = completion[completion_mask].tolist()
                one, ends = Input.one(prompt[prompt_mask].tolist(), ids), False
                if alignment == "spans":
                    ends = ids[-1] < 3  # the special tokens
                    text, spans = token_spans(tokenizer, ids[: len(ids) - ends])
                    end = [(len(text.encode()),) * 2] * ends
                    one = Input.one(example["prompt"], text, spans=spans + end)
                scored = client.score([one], append_eos=ends)[0]
                np.testing.assert_array_equal(rewards[completion_mask].numpy(), scored.rewards)
                assert not rewards[~completion_mask].any()
            tokens = batch["token_rewards"][mask].double()
            standard = (tokens - tokens.mean()) / tokens.std(unbiased=False)
            sequence = batch["advantages"][mask].double() - standard
            # What is left is GRPO's own advantage, on every token of its row.
            torch.testing.assert_close(sequence, advantages.double().repeat_interleave(mask.sum(1)), atol=1e-4, rtol=1e-4)
        assert any(advantages.any() for advantages in own)

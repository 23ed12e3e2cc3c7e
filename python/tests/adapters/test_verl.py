"""verl's own classes around the adapter; the sampling is not verl's, there is no GPU to sample on."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
transformers = pytest.importorskip("transformers")
agent_loop = pytest.importorskip("verl.experimental.agent_loop.agent_loop")

from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402

from qrm_client import Client, Input, token_spans  # noqa: E402
from qrm_client.adapters import verl as adapter  # noqa: E402

from ..conftest import FIXTURES  # noqa: E402

CHAT = [{"role": "user", "content": "Ada has 3 pens."}]
#: The tokenizer's `<|im_end|>`.
END = 2


def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(FIXTURES / "qwen2")


def rollout(seed: int, rows: int = 4) -> DataProto:
    """As verl's agent loop gives it: prompts padded on the left, responses on the right; tools' tokens are masked."""
    rng = np.random.default_rng(seed)
    prompts, responses = torch.zeros(rows, 10, dtype=torch.int64), torch.zeros(rows, 12, dtype=torch.int64)
    attention, written = torch.zeros(rows, 22, dtype=torch.int64), torch.zeros(rows, 12, dtype=torch.int64)
    for row in range(rows):
        p, r = rng.integers(2, 11), rng.integers(1, 13)
        prompts[row, 10 - p:] = torch.from_numpy(rng.integers(3, 500, p))
        responses[row, :r] = torch.from_numpy(rng.integers(3, 500, r))
        if row % 2:
            responses[row, r - 1] = END
        attention[row, 10 - p : 10 + r] = 1
        written[row, :r] = torch.from_numpy(rng.integers(0, 2, r))
    batch = TensorDict({"prompts": prompts, "responses": responses, "attention_mask": attention, "response_mask": written,
                        "input_ids": torch.cat([prompts, responses], 1)}, batch_size=rows)
    raw = np.empty(rows, object)
    raw[:] = [CHAT] * rows
    return DataProto(batch=batch, non_tensor_batch={"raw_prompt": raw}, meta_info={"metrics": [{"generate_sequences": 1.0, "tool_calls": 0.0, "compute_score": 0.0}] * rows})


def expected(client: Client, batch, alignment: str) -> torch.Tensor:
    out = torch.zeros(batch["responses"].shape)
    for row in range(len(out)):
        mask = batch["attention_mask"][row].bool()
        prompt, response = batch["prompts"][row][mask[:10]].tolist(), batch["responses"][row][mask[10:]].tolist()
        one, ends = Input.one(prompt, response), False
        if alignment == "spans":
            ends = response[-1] == END
            text, spans = token_spans(tokenizer(), response[: len(response) - ends])
            one = Input.one(CHAT, text, spans=spans + [(len(text.encode()),) * 2] * ends)
        scored = client.score([one], append_eos=ends)[0]
        out[row, : scored.length] = torch.from_numpy(scored.rewards)
    return out * batch["response_mask"]


@pytest.mark.parametrize("alignment", ["ids", "spans"])
def test_the_manager_delivers_rm_scores(server, monkeypatch, alignment):
    monkeypatch.setenv("QRM_URL", server.url)
    monkeypatch.setenv("QRM_ALIGNMENT", alignment)

    class Worker:
        class generate_sequences:
            @staticmethod
            async def remote(chunk):
                return rollout(int(chunk.batch["seed"][0]), len(chunk))

    assert issubclass(adapter.TokenRewardManager, agent_loop.AgentLoopManager)
    manager = adapter.TokenRewardManager.__new__(adapter.TokenRewardManager)
    manager.agent_loop_workers = [Worker(), Worker()]
    manager._performance_metrics = lambda metrics, output: {}
    manager._tokenizer = tokenizer
    prompts = DataProto(batch=TensorDict({"seed": torch.tensor([1, 1, 1, 2, 2, 2])}, batch_size=6))
    output = manager.generate_sequences(prompts)  # as the trainer does: nobody awaits
    scores = output.batch["rm_scores"]
    assert scores.dtype == torch.float32 and scores.shape == (6, 12)
    with Client(server.url) as client:
        assert torch.equal(scores, expected(client, output.batch, alignment))


def test_the_reward_function(server, monkeypatch):
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    monkeypatch.setenv("QRM_URL", server.url)
    adapter._async_client.cache_clear()
    ids = tokenizer()("7 pens")["input_ids"]
    response = torch.tensor(ids + [0] * 3)
    attention = torch.tensor([1] * 4 + [1] * len(ids) + [0] * 3)
    batch = TensorDict({"prompts": torch.ones(1, 4, dtype=torch.int64), "responses": response[None], "attention_mask": attention[None]}, batch_size=1)
    extra = {"question": "Ada has 3 pens."}  # as verl's GSM8K rows have it: without what the policy was told
    told = [{"role": "system", "content": "Think."}, *CHAT]
    rows = {"data_source": np.array(["x"], object), "reward_model": np.array([{"ground_truth": "7"}], object), "extra_info": np.array([extra], object)}
    passed_on = np.array([{"raw_prompt": told}], object)  # by verl's agent loop

    async def run():
        manager = NaiveRewardManager(None, tokenizer(), adapter.compute_score)
        bare = await manager.run_single(DataProto(batch=batch, non_tensor_batch=rows))
        return bare, await manager.run_single(DataProto(batch=batch, non_tensor_batch=rows | {"tool_extra_fields": passed_on}))

    results = asyncio.run(run())
    with Client(server.url) as client:
        expected = [trajectory.score for trajectory in client.score([Input.one(CHAT, "7 pens"), Input.one(told, "7 pens")])]
    assert [result["reward_score"] for result in results] == expected and expected[0] != expected[1]


def test_what_the_reward_model_is_told_was_asked(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)
    images = [{"role": "user", "content": [{"type": "image"}]}]

    def score(**extra):
        adapter._async_client.cache_clear()
        return asyncio.run(adapter.compute_score("x", "7 pens", "7", extra))["score"]

    with Client(server.url) as client:
        chat, text = [trajectory.score for trajectory in client.score([Input.one(CHAT, "7 pens"), Input.one("Two?", "7 pens")])]
    assert score(question="Ada has 3 pens.") == score(question=CHAT) == score(prompt=CHAT, question="Two?") == chat
    assert score(raw_prompt=CHAT, prompt="Two?") == score(raw_prompt=images, question="Ada has 3 pens.") == chat
    assert score(prompt="Two?") == text
    with pytest.raises(KeyError, match="raw_prompt"):
        score(raw_prompt=images)


def test_the_example_credits_a_token_with_its_own_reward():
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return
    from verl.utils.torch_functional import masked_whiten

    example = (Path(__file__).parents[2] / "examples" / "verl.sh").read_text()
    gamma, lam = (float(re.search(rf"algorithm\.{name}=(\S+)", example)[1]) for name in ("gamma", "lam"))
    rewards, values, mask = -torch.rand(3, 7), torch.randn(3, 7), torch.ones(3, 7)
    mask[1, 4:] = 0
    advantages, _ = compute_gae_advantage_return(rewards * mask, values, mask, gamma, lam)
    assert torch.allclose(advantages * mask, masked_whiten(rewards - values, mask) * mask, atol=1e-6)


def test_an_empty_answer_is_its_end_of_sequence(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)
    adapter._async_client.cache_clear()
    scored = asyncio.run(adapter.compute_score("x", "", "7", {"question": "Two?"}))
    with Client(server.url) as client:
        end = client.score([Input.one([{"role": "user", "content": "Two?"}], "")], append_eos=True)[0]
        assert end.length == 1 and scored == {"score": end.answer_score}

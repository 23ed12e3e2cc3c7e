"""verl's own classes around the adapter; the sampling is not verl's, there is no GPU to sample on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl")
agent_loop = pytest.importorskip("verl.experimental.agent_loop.agent_loop")

from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402

from qrm_client import Client, Input  # noqa: E402
from qrm_client.adapters import verl as adapter  # noqa: E402


def rollout(seed: int, rows: int = 4) -> DataProto:
    """As verl's agent loop gives it: prompts padded on the left, responses on the right; tools' tokens are masked."""
    rng = np.random.default_rng(seed)
    prompts, responses = torch.zeros(rows, 10, dtype=torch.int64), torch.zeros(rows, 12, dtype=torch.int64)
    attention, written = torch.zeros(rows, 22, dtype=torch.int64), torch.zeros(rows, 12, dtype=torch.int64)
    for row in range(rows):
        p, r = rng.integers(2, 11), rng.integers(1, 13)
        prompts[row, 10 - p:] = torch.from_numpy(rng.integers(3, 500, p))
        responses[row, :r] = torch.from_numpy(rng.integers(3, 500, r))
        attention[row, 10 - p : 10 + r] = 1
        written[row, :r] = torch.from_numpy(rng.integers(0, 2, r))
    batch = TensorDict({"prompts": prompts, "responses": responses, "attention_mask": attention, "response_mask": written,
                        "input_ids": torch.cat([prompts, responses], 1)}, batch_size=rows)
    return DataProto(batch=batch, meta_info={"metrics": [{"generate_sequences": 1.0, "tool_calls": 0.0, "compute_score": 0.0}] * rows})


def expected(client: Client, batch) -> torch.Tensor:
    out = torch.zeros(batch["responses"].shape)
    for row in range(len(out)):
        mask = batch["attention_mask"][row].bool()
        scored = client.score([Input.one(batch["prompts"][row][mask[:10]].tolist(), batch["responses"][row][mask[10:]].tolist())])[0]
        out[row, : scored.length] = torch.from_numpy(scored.rewards)
    return out * batch["response_mask"]


def test_the_manager_delivers_rm_scores(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)

    class Worker:
        class generate_sequences:
            @staticmethod
            async def remote(chunk):
                return rollout(int(chunk.batch["seed"][0]), len(chunk))

    assert issubclass(adapter.TokenRewardManager, agent_loop.AgentLoopManager)
    manager = adapter.TokenRewardManager.__new__(adapter.TokenRewardManager)
    manager.agent_loop_workers = [Worker(), Worker()]
    manager._performance_metrics = lambda metrics, output: {}
    prompts = DataProto(batch=TensorDict({"seed": torch.tensor([1, 1, 1, 2, 2, 2])}, batch_size=6))
    output = asyncio.run(manager.generate_sequences(prompts))
    scores = output.batch["rm_scores"]
    assert scores.dtype == torch.float32 and scores.shape == (6, 12)
    with Client(server.url) as client:
        assert torch.equal(scores, expected(client, output.batch))


def test_the_reward_function(server, monkeypatch):
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    monkeypatch.setenv("QRM_URL", server.url)
    adapter._async_client.cache_clear()
    transformers = pytest.importorskip("transformers")
    from ..conftest import FIXTURES

    tokenizer = transformers.AutoTokenizer.from_pretrained(FIXTURES / "qwen2")
    ids = tokenizer("7 pens")["input_ids"]
    response = torch.tensor(ids + [0] * 3)
    attention = torch.tensor([1] * 4 + [1] * len(ids) + [0] * 3)
    batch = TensorDict({"prompts": torch.ones(1, 4, dtype=torch.int64), "responses": response[None], "attention_mask": attention[None]}, batch_size=1)
    extra = {"question": "Ada has 3 pens and buys 4."}
    rows = {"data_source": np.array(["x"], object), "reward_model": np.array([{"ground_truth": "7"}], object), "extra_info": np.array([extra], object)}

    async def run():
        manager = NaiveRewardManager(None, tokenizer, adapter.compute_score)
        return await manager.run_single(DataProto(batch=batch, non_tensor_batch=rows))

    result = asyncio.run(run())
    with Client(server.url) as client:
        assert result["reward_score"] == client.score([Input.one(extra["question"], "7 pens")])[0].score

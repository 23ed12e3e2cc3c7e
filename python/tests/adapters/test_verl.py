"""verl's own classes around the adapter; the sampling is not verl's, there is no GPU to sample on."""

from __future__ import annotations

import asyncio

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
        one = Input.one(prompt, response)
        if alignment == "spans":
            text, spans = token_spans(tokenizer(), response)
            one = Input.one(CHAT, text, spans=spans)
        scored = client.score([one])[0]
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
    extra = {"question": "Ada has 3 pens and buys 4."}
    rows = {"data_source": np.array(["x"], object), "reward_model": np.array([{"ground_truth": "7"}], object), "extra_info": np.array([extra], object)}

    async def run():
        manager = NaiveRewardManager(None, tokenizer(), adapter.compute_score)
        return await manager.run_single(DataProto(batch=batch, non_tensor_batch=rows))

    result = asyncio.run(run())
    with Client(server.url) as client:
        assert result["reward_score"] == client.score([Input.one(extra["question"], "7 pens")])[0].score


def test_an_empty_answer_is_its_end_of_sequence(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)
    adapter._async_client.cache_clear()
    scored = asyncio.run(adapter.compute_score("x", "", "7", {"question": "Two?"}))
    with Client(server.url) as client:
        end = client.score([Input.one("Two?", "")], append_eos=True)[0]
        assert end.length == 1 and scored == {"score": end.answer_score}

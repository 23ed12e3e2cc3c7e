"""slime is not on PyPI: its shapes are those recorded from its source (`Sample`, the arguments, the rollout's lists)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from qrm_client import Client, Input
from qrm_client.adapters import slime as adapter

torch = pytest.importorskip("torch")


def test_rewards_travel_to_the_advantages(server, monkeypatch):
    monkeypatch.setenv("QRM_URL", server.url)
    adapter._client.cache_clear()
    samples = [SimpleNamespace(prompt="Q", tokens=[5, 6, 7, 8, 9 + i], response_length=2 + i % 2) for i in range(6)]

    async def rollout():
        return await asyncio.gather(*(adapter.reward(SimpleNamespace(), sample) for sample in samples))

    rewards = asyncio.run(rollout())
    with Client(server.url) as client:
        for sample, reward in zip(samples, rewards):
            n = sample.response_length
            direct = client.score([Input.one(sample.tokens[:-n], sample.tokens[-n:])])[0]
            assert sample.teacher_log_probs == direct.rewards.tolist() and reward["score"] == direct.score
    aborted = SimpleNamespace(prompt="Q", tokens=[5, 6], response_length=0)
    samples.append(aborted)
    rewards.append(asyncio.run(adapter.reward(SimpleNamespace(), aborted)))
    data = {"rewards": [r["score"] for r in rewards], "teacher_log_probs": [s.teacher_log_probs for s in samples]}
    adapter.advantages(SimpleNamespace(), data)
    every = torch.cat(data["advantages"])
    assert [len(a) for a in data["advantages"]] == [s.response_length for s in samples]
    assert abs(every.mean()) < 1e-5 and abs(every.std(unbiased=False) - 1) < 1e-5
    assert data["returns"] is data["advantages"]

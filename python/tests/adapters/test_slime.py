"""slime is not on PyPI: its shapes are those recorded from its source (`Sample`, the arguments, the rollout's lists), and so
is how it divides a sequence for context parallelism."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import pytest

from qrm_client import Client, Input
from qrm_client.adapters import slime as adapter

from ..conftest import FIXTURES

torch = pytest.importorskip("torch")

ARGS = SimpleNamespace(qkv_format="thd")


def part(values, total: int, response: int, layout: str, longest: int | None, rank: int, ranks: int):
    """A rank's own of a response's values: of 2·ranks pieces of the sequence the one at its place, from either end."""
    piece = -(-(total if layout == "thd" else longest) // (2 * ranks))
    prompt = total - response
    at = [t for t in range(response) if (t + prompt - 1) // piece in (rank, 2 * ranks - rank - 1)]  # where it is predicted
    return values[at]


def pretend(rank: int, ranks: int, group=None, put=dict.__setitem__):
    """Modules for those of slime and Megatron that the adapter asks."""

    def slice_log_prob_with_cp(values, total, response, layout="thd", longest=None):
        return part(values, total, response, layout, longest, rank, ranks)

    mpu = SimpleNamespace(get_data_parallel_group=lambda with_context_parallel: group if with_context_parallel else 1 / 0)
    cp_utils = {"slice_log_prob_with_cp": slice_log_prob_with_cp}
    for name, content in (("slime.backends.megatron_utils.cp_utils", cp_utils), ("megatron.core", {"mpu": mpu})):
        module = ModuleType(name)
        module.__dict__.update(content)
        put(sys.modules, name, module)


def rollout(responses=(5, 9, 2, 0, 7), prompts=(4, 3, 30, 6, 1)):
    """A rollout's lists on one rank, before they are cut."""
    rng = torch.Generator().manual_seed(1)
    return {
        "rewards": [0.0] * len(responses), "loss_masks": [(torch.rand(n, generator=rng) < 0.7).int() for n in responses],
        "response_lengths": list(responses), "total_lengths": [p + r for p, r in zip(prompts, responses)],
        "max_seq_lens": [40] * len(responses),
        "teacher_log_probs": [-torch.rand(n, generator=rng) * 9 for n in responses],
    }


def standardised(data):
    mask = torch.cat(data["loss_masks"]).bool()
    written = torch.cat(data["teacher_log_probs"])[mask].double()
    return [((t.double() - written.mean()) / written.std(unbiased=False)).float() for t in data["teacher_log_probs"]]


@pytest.fixture
def alone(monkeypatch, tmp_path):
    pretend(0, 1, put=monkeypatch.setitem)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def clear(monkeypatch, server):
    monkeypatch.setenv("QRM_URL", server.url)
    adapter._client.cache_clear()


def test_rewards_travel_to_the_advantages(server, monkeypatch, alone):
    clear(monkeypatch, server)
    samples = [SimpleNamespace(prompt="Q", tokens=[5, 6, 7, 8, 9 + i], response_length=2 + i % 2) for i in range(6)]

    async def scored():
        return await asyncio.gather(*(adapter.reward(SimpleNamespace(), sample) for sample in samples))

    rewards = asyncio.run(scored())
    with Client(server.url) as client:
        for sample, reward in zip(samples, rewards):
            n = sample.response_length
            direct = client.score([Input.one(sample.tokens[:-n], sample.tokens[-n:])])[0]
            assert sample.teacher_log_probs == direct.rewards.tolist() and reward["score"] == direct.score
    aborted = SimpleNamespace(prompt="Q", tokens=[5, 6], response_length=0)
    samples.append(aborted)
    rewards.append(asyncio.run(adapter.reward(SimpleNamespace(), aborted)))
    lengths = [s.response_length for s in samples]
    data = {"rewards": [r["score"] for r in rewards], "teacher_log_probs": [s.teacher_log_probs for s in samples],
            "loss_masks": [torch.ones(n, dtype=torch.int32) for n in lengths],
            "response_lengths": lengths, "total_lengths": [len(s.tokens) for s in samples]}
    adapter.advantages(ARGS, data)
    every = torch.cat(data["advantages"])
    assert [len(a) for a in data["advantages"]] == lengths
    assert abs(every.mean()) < 1e-5 and abs(every.std(unbiased=False) - 1) < 1e-5
    assert data["returns"] is data["advantages"]


def test_finished_and_unfinished_samples_go_together(server, monkeypatch):
    transformers = pytest.importorskip("transformers")
    clear(monkeypatch, server)
    monkeypatch.setenv("QRM_ALIGNMENT", "spans")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(FIXTURES / "qwen2" / "tokenizer.json"))
    monkeypatch.setattr(adapter, "_tokenizer", lambda path: tokenizer)
    answers = [tokenizer("She has 7 pens.")["input_ids"] + end for end in ([], [2])]
    samples = [SimpleNamespace(prompt="Q", tokens=[5, *ids], response_length=len(ids)) for ids in answers]

    async def scored():
        return await asyncio.gather(*(adapter.reward(SimpleNamespace(hf_checkpoint=""), sample) for sample in samples))

    asyncio.run(scored())
    with Client(server.url) as client:
        for sample, ids in zip(samples, answers):
            assert sample.teacher_log_probs == pytest.approx(client.score([Input.one("Q", ids)])[0].rewards.tolist(), abs=1e-5)


def test_tokens_that_the_policy_did_not_write_do_not_count(alone):
    data = rollout()
    expected = standardised(data)
    adapter.advantages(ARGS, data)
    for own, one in zip(data["advantages"], expected):
        torch.testing.assert_close(own, one, atol=1e-5, rtol=1e-5)


def _rank(rank: int, ranks: int, path: str, layout: str):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=ranks)
    pretend(rank, ranks)
    data = rollout()
    expected, places = standardised(data), list(zip(data["total_lengths"], data["response_lengths"]))

    def own(values):
        return [part(v, total, response, layout, 40, rank, ranks) for v, (total, response) in zip(values, places)]

    data["teacher_log_probs"] = own(data["teacher_log_probs"])
    adapter.advantages(SimpleNamespace(qkv_format=layout), data)
    for got, one in zip(data["advantages"], own(expected)):
        torch.testing.assert_close(got, one, atol=1e-5, rtol=1e-5)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("layout", ["thd", "bshd"])
def test_ranks_that_share_a_sequence_standardise_alike(tmp_path, layout):
    torch.multiprocessing.spawn(_rank, (2, f"{tmp_path}/group", layout), nprocs=2)

"""Both protocols, blocking and not, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import numpy as np
import pytest

from qrm_client import AsyncClient, Client, Input, InvalidRequest, Retry, RewardError, Unauthorized, Unavailable
from qrm_client.grpc import AsyncGrpcClient, GrpcClient

EVERYTHING = ["token_ids", "tokens", "logit", "logsumexp", "max", "entropy"]
ONCE = Retry(tries=1)


def inputs(golden):
    return [Input.one(case["prompt_ids"], case["response_ids"]) for case in golden["cases"]]


def check(rewards, golden):
    assert len(rewards) == len(golden["cases"])
    for got, case in zip(rewards, golden["cases"]):
        expected = np.array(case["logit"]) - np.array(case["logsumexp"])
        assert got.rewards.dtype == np.float32 and got.rewards.shape == expected.shape
        np.testing.assert_allclose(got.rewards, expected, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(got.entropy, case["entropy"], atol=2e-4, rtol=1e-4)
        assert got.token_ids.tolist() == case["response_ids"]
    assert rewards.reward == "advantage" and rewards.usage["response_tokens"] == sum(r.length for r in rewards)


async def test_every_client_gives_the_golden_rewards(server, golden):
    answers = []
    with Client(server.url) as client, GrpcClient(server.grpc) as rpc:
        answers += [client.score(inputs(golden), include=EVERYTHING), rpc.score(inputs(golden), include=EVERYTHING)]
    async with AsyncClient(server.url) as client, AsyncGrpcClient(server.grpc) as rpc:
        answers += [await c.score(inputs(golden), include=EVERYTHING) for c in (client, rpc)]
    for rewards in answers:
        check(rewards, golden)
        for got, first in zip(rewards, answers[0]):
            np.testing.assert_array_equal(got.rewards, first.rewards)
    padded = answers[0].padded()
    assert padded.shape == (len(golden["cases"]), max(len(c["response_ids"]) for c in golden["cases"]))


def test_text_messages_groups_and_spans(server, golden):
    text = golden["text"]
    one = Input(text["messages"], [text["response"], "No."], id="a")
    spans = Input.one("2 + 2 =", " é4", spans=[(0, 2), (2, 4)])
    with Client(server.url) as client, GrpcClient(server.grpc) as rpc:
        for rewards in [c.score([one, spans], include=["offsets"]) for c in (client, rpc)]:
            assert [t.id for t in rewards] == ["a", "a", None]
            assert [t.input for t in rewards] == [0, 0, 1]
            assert rewards[2].length == 2 and rewards[0].offsets.shape == (rewards[0].length, 2)
            assert rewards[0].length == len(text["response_ids"])


def test_an_outcome_is_not_divided_by_the_length(start):
    server = start("llama-sequence-classification")
    ids = {"prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
    route = httpx.post(f"{server.url}/v1/rewards", json={"inputs": [ids]}).json()["data"][0]["rewards"][-1]
    with Client(server.url) as client, GrpcClient(server.grpc) as rpc:
        for one in [c.reward(ids["prompt"], ids["response"]) for c in (client, rpc)]:
            assert one.reward == "outcome" and one.answer_score == pytest.approx(route) != pytest.approx(one.score)
    server = start("qwen2")
    with Client(server.url) as client:
        one = client.reward(ids["prompt"], ids["response"])
        assert one.answer_score == one.score


async def test_refusals_are_typed(start, tmp_path, golden):
    keys = tmp_path / "keys"
    keys.write_text("alice secret\n")
    server = start("qwen2", "--api-key-file", str(keys))
    bad = [*inputs(golden)[:2], Input.one([1, 2], [])]
    for make, target in ((Client, server.url), (GrpcClient, server.grpc)):
        with make(target, key="wrong", retry=ONCE) as client, pytest.raises(Unauthorized):
            client.score(inputs(golden))
        with make(target, key="secret", retry=ONCE) as client:
            with pytest.raises(InvalidRequest) as caught:
                client.score(bad)
            assert caught.value.code == "response_empty" and caught.value.param.startswith("inputs[2].response")
            with pytest.raises(InvalidRequest):
                client.score(inputs(golden), reward="outcome")
    with Client("http://127.0.0.1:9", retry=ONCE) as client, pytest.raises(Unavailable):
        client.info()
    with GrpcClient("127.0.0.1:9", retry=ONCE) as client, pytest.raises(Unavailable):
        client.score(inputs(golden))
    # One caller's mistake is not the others', though they went together.
    async with AsyncClient(server.url, key="secret", batch_window=0.05) as client:
        good, worse = await asyncio.gather(client.reward([1, 2], [3]), client.reward([1, 2], []), return_exceptions=True)
        assert good.length == 1 and isinstance(worse, InvalidRequest)


def requests(server) -> int:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(int(n) for n in re.findall(r'qrm_requests_total{[^}]*route="[^"]*(?:rewards|Score)",status="[^"]*"} (\d+)', text))


async def test_concurrent_calls_go_together(start):
    server = start("qwen2")
    rng = np.random.default_rng(1)
    rows = [(rng.integers(3, 500, 9), rng.integers(3, 500, 5)) for _ in range(100)]
    with Client(server.url) as client:
        expected = client.score([Input.one(p, r) for p, r in rows])
    for make, target in ((AsyncClient, server.url), (AsyncGrpcClient, server.grpc)):
        before = requests(server)
        async with make(target, batch_window=0.05) as client:
            got = await asyncio.gather(*(client.reward(p, r) for p, r in rows))
        assert requests(server) - before <= 3
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a.rewards, b.rewards)
    for make, target in ((Client, server.url), (GrpcClient, server.grpc)):
        before = requests(server)
        with make(target, batch_window=0.2) as client, ThreadPoolExecutor(100) as pool:
            got = list(pool.map(lambda row: client.reward(*row), rows))
        assert requests(server) - before <= 20
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a.rewards, b.rewards)


def test_what_passes_is_tried_again(start):
    # A queue that holds one of these at a time, and a client that comes with eight.
    server = start("qwen2", "--max-queue-tokens", "4000", "--threads", "1")
    rng = np.random.default_rng(2)
    many = [Input.one(rng.integers(3, 500, 200), rng.integers(3, 500, 200)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for make, target in ((Client, server.url), (GrpcClient, server.grpc)):
            with make(target) as client:
                answers = list(pool.map(lambda _: client.score(many), range(8)))
            assert all(len(answer) == 8 for answer in answers)
    text = httpx.get(f"{server.url}/metrics").text
    assert int(re.search(r"qrm_queue_refused_total (\d+)", text).group(1)) > 0


def test_retry_after_is_respected():
    class Refusal(Unavailable):
        pass

    waits = list(Retry(tries=6, first=1, longest=4).waits())
    assert len(waits) == 5 and all(w <= 4 for w in waits) and waits[0] <= 1
    assert Retry.after(0.5, Refusal("full", retry_after=7)) == 7
    assert Retry.after(9, Refusal("full", retry_after=7)) == 9


def test_a_restart_of_the_server_passes(start, golden):
    first = start("qwen2")
    port = int(first.address.rsplit(":", 1)[1])
    with Client(first.url, retry=Retry(longest=1.0)) as client:
        check(client.score(inputs(golden), include=EVERYTHING), golden)
        first.stop()
        threading.Timer(1.0, lambda: start("qwen2", port=port)).start()
        check(client.score(inputs(golden), include=EVERYTHING), golden)


async def test_streams(server, golden):
    rng = np.random.default_rng(3)
    rows = [Input.one(rng.integers(3, 500, 12), rng.integers(3, 500, 8)) for _ in range(60)]
    with Client(server.url) as client:
        expected = client.score(rows)
        streamed = sorted(client.stream(rows), key=lambda t: t.index)
    async with AsyncClient(server.url) as client:
        also = sorted([t async for t in client.stream(rows)], key=lambda t: t.index)
    for got in (streamed, also):
        assert len(got) == 60
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a.rewards, b.rewards)
    with Client(server.url) as client, pytest.raises(RewardError):
        list(client.stream(rows, normalize="std"))


async def test_a_grpc_stream_of_a_thousand_is_cancelled_half_way(start):
    server = start("qwen2", "--threads", "1")
    rng = np.random.default_rng(4)
    rows = [Input.one(rng.integers(3, 500, 100), rng.integers(3, 500, 100)) for _ in range(1000)]
    with GrpcClient(server.grpc) as client:
        everything = list(client.stream([*rows, Input.one([1], [], id="bad")]))
        refused = [t for t in everything if isinstance(t, InvalidRequest)]
        assert len(everything) == 1001 and [(r.input, r.id) for r in refused] == [(1000, "bad")]
        seen = 0
        for _ in client.stream(rows):
            seen += 1
            if seen == 500:
                break
    async with AsyncGrpcClient(server.grpc) as client:
        async for _ in client.stream(rows):
            break
    deadline = time.monotonic() + 20
    while "qrm_queue_tokens 0\n" not in (text := httpx.get(f"{server.url}/metrics").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_the_descriptors_are_those_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools")
    from importlib.resources import files
    from pathlib import Path

    fresh = tmp_path / "reward.desc"
    script = Path(__file__).parents[1] / "generate.sh"
    subprocess.run([str(script), str(fresh)], check=True, env={**os.environ, "PYTHON": sys.executable})
    assert fresh.read_bytes() == files("qrm_client").joinpath("reward.desc").read_bytes()

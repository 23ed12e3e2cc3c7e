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

import grpc
import httpx2 as httpx
import numpy as np
import pytest

from qrm_client import AsyncClient, Client, Input, InvalidRequest, Retry, RewardError, Trajectory, Unauthorized, Unavailable, pb
from qrm_client.batching import Batcher
from qrm_client.grpc import AsyncGrpcClient, GrpcClient, _streamed

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


async def test_every_client_tokenises_and_tells_what_is_served(server):
    with Client(server.url) as client, GrpcClient(server.grpc) as rpc:
        told, ids, also = client.info(), client.tokenize("2 + 2 =")["tokens"], rpc.tokenize("2 + 2 =")
        assert ids and list(also.tokens) == ids and rpc.info().version == told["version"]
        with pytest.raises(InvalidRequest):
            rpc.tokenize("2", model="another")
    async with AsyncClient(server.url) as client, AsyncGrpcClient(server.grpc) as rpc:
        assert await client.info() == told and (await client.tokenize("2 + 2 ="))["tokens"] == ids
        assert await rpc.tokenize("2 + 2 =") == also and (await rpc.info()).version == told["version"]


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


def test_an_answers_score_is_what_its_kind_of_model_compares():
    rewards = np.array([0, 0.5, 0, -0.25, 0, 0.75], dtype=np.float32)

    def score(reward, rewards=rewards):
        return Trajectory(0, 0, rewards, float(rewards.mean()), float(rewards.sum()), reward=reward).answer_score

    assert score("step") == -0.25 and score("step", np.zeros(3, np.float32)) == 1.0
    assert score("outcome") == score("dpo") == 1.0
    assert score("advantage") == score("logit") == score("centered_logit") == pytest.approx(1 / 6)


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
    for make, target in ((Client, "http://127.0.0.1:9"), (GrpcClient, "127.0.0.1:9")):
        with make(target, retry=ONCE) as client:
            for call in (client.info, lambda: client.score(inputs(golden)), lambda: list(client.stream(inputs(golden)))):
                with pytest.raises(Unavailable):
                    call()
    for make, target in ((AsyncClient, "http://127.0.0.1:9"), (AsyncGrpcClient, "127.0.0.1:9")):
        async with make(target, retry=ONCE) as client:
            with pytest.raises(Unavailable):
                await client.info()
            with pytest.raises(Unavailable):
                [t async for t in client.stream(inputs(golden))]
    # One caller's mistake is not the others', though they went together.
    async with AsyncClient(server.url, key="secret", batch_window=0.05) as client:
        good, worse = await asyncio.gather(client.reward([1, 2], [3]), client.reward([1, 2], []), return_exceptions=True)
        assert good.length == 1 and isinstance(worse, InvalidRequest)


def test_a_refusal_within_a_stream_is_of_its_kind():
    kinds = {3: InvalidRequest, 5: InvalidRequest, 8: Unavailable, 14: Unavailable, 16: Unauthorized, 4: RewardError, 13: RewardError}
    for status, kind in kinds.items():
        refusal = _streamed(pb.ScoreStreamResponse(error=pb.Error(input=7, status=status, message="no")))
        assert type(refusal) is kind and refusal.input == 7
        assert refusal.status == next(code.name for code in grpc.StatusCode if code.value[0] == status)


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


def test_an_interrupted_leader_leaves_nobody_waiting():
    batcher = Batcher(lambda inputs: [one.id for one in inputs], 0.0)
    wait, followers = batcher._full.wait, ThreadPoolExecutor(1)
    follower = None

    def interrupted(window):
        nonlocal follower
        follower = followers.submit(batcher.score, Input.one([1], [2], id="follower"))
        while len(batcher._waiting) < 2:
            time.sleep(0.001)
        raise KeyboardInterrupt

    batcher._full.wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        batcher.score(Input.one([1], [2], id="leader"))
    with pytest.raises(KeyboardInterrupt):
        follower.result(timeout=5)
    batcher._full.wait = wait
    assert followers.submit(batcher.score, Input.one([1], [2], id="next")).result(timeout=5) == "next"


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


async def test_retry_after_is_respected(monkeypatch):
    waits = list(Retry(tries=6, first=1, longest=4).waits())
    assert len(waits) == 5 and all(w <= 4 for w in waits) and waits[0] <= 1
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    def answer(request):  # full three times: for 7 seconds, for no time that is told, and for less than would be waited
        headers = [{"retry-after": "7"}, {}, {"retry-after": "0"}]
        if len(slept) < len(headers):
            return httpx.Response(503, headers=headers[len(slept)], json={"error": {"code": "queue_full", "message": "full"}})
        return httpx.Response(200, json={"version": "1"})

    monkeypatch.setattr("qrm_client.http.time.sleep", slept.append)
    monkeypatch.setattr("qrm_client.http.asyncio.sleep", sleep)
    retry = Retry(tries=4, first=1, longest=4)
    with Client(retry=retry) as client:
        client._http = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server")
        assert client.info() == {"version": "1"}
    assert slept[0] == 7 and 1 <= slept[1] <= 2 and 2 <= slept[2] <= 4
    slept.clear()
    async with AsyncClient(retry=retry) as client:
        client._http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")
        assert await client.info() == {"version": "1"}
    assert slept[0] == 7 and 1 <= slept[1] <= 2 and 2 <= slept[2] <= 4


def test_a_restart_of_the_server_passes(start, golden):
    first = start("qwen2")
    port = int(first.address.rsplit(":", 1)[1])
    with Client(first.url, retry=Retry(tries=60, longest=1.0)) as client:
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
    with pytest.raises(ValueError, match="score"):  # whether it is the mean or the sum, a stream does not say
        streamed[0].answer_score


async def test_a_streamed_line_ends_where_json_ends(server):
    rows = [Input.one([1], [2, 3], id=f"a{end}b") for end in ("\u2028", "\u2029", "\u0085", "\x0b", "\r\n")]
    with Client(server.url) as client:
        assert sorted(t.id for t in client.stream(rows)) == sorted(row.id for row in rows)
    async with AsyncClient(server.url) as client:
        assert sorted([t.id async for t in client.stream(rows)]) == sorted(row.id for row in rows)


async def test_a_grpc_stream_may_outlast_a_calls_deadline(server):
    def slow():
        for _ in range(3):
            yield Input.one([1], [2, 3])
            time.sleep(0.5)

    async def slow_too():
        for _ in range(3):
            yield Input.one([1], [2, 3])
            await asyncio.sleep(0.5)

    with GrpcClient(server.grpc, timeout=1.0) as client:
        assert len(list(client.stream(slow()))) == 3
    async with AsyncGrpcClient(server.grpc, timeout=1.0) as client:
        assert len([t async for t in client.stream(slow_too())]) == 3


def metric(server, name: str) -> int:
    return int(re.search(rf"^{re.escape(name)} (\d+)$", httpx.get(f"{server.url}/metrics").text, re.MULTILINE).group(1))


async def drained(server):
    """Once the server knows of no stream any more, and nothing waits."""
    streams, deadline = 'qrm_requests_in_flight{route="/qrm.v1.RewardService/ScoreStream"}', time.monotonic() + 20
    while metric(server, streams) or metric(server, "qrm_queue_tokens"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_closed_grpc_stream_is_not_computed_to_its_end(start):
    server = start("qwen2", "--threads", "1")
    rng = np.random.default_rng(4)

    def thousand():
        return [Input.one(rng.integers(3, 500, 100), rng.integers(3, 500, 100)) for _ in range(1000)]

    def computed() -> int:
        return metric(server, "qrm_computed_tokens_total")

    # The channel stays open throughout: it is the stream's end that ends the work.
    with GrpcClient(server.grpc) as client:
        everything = list(client.stream([*thousand(), Input.one([1], [], id="bad")]))
        refused = [t for t in everything if isinstance(t, InvalidRequest)]
        assert len(everything) == 1001 and [(r.input, r.id) for r in refused] == [(1000, "bad")]
        whole = computed()
        stream = client.stream(thousand())
        next(stream)
        stream.close()
        await drained(server)
        assert computed() - whole < whole / 2
    async with AsyncGrpcClient(server.grpc) as client:
        before, stream = computed(), client.stream(thousand())
        await anext(stream)
        await stream.aclose()
        await drained(server)
        assert computed() - before < whole / 2


def test_the_descriptors_are_those_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools")
    from importlib.resources import files
    from pathlib import Path

    fresh = tmp_path / "reward.desc"
    script = Path(__file__).parents[1] / "generate.sh"
    subprocess.run([str(script), str(fresh)], check=True, env={**os.environ, "PYTHON": sys.executable})
    assert fresh.read_bytes() == files("qrm_client").joinpath("reward.desc").read_bytes()

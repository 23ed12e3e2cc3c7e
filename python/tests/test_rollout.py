"""A rollout of more answers than a request may hold."""

from __future__ import annotations

import numpy as np
import pytest

from qrm_client import Client, Input, InvalidRequest
from qrm_client.adapters import rollout
from qrm_client.adapters.align import Aligned


def inputs(n: int) -> list[Input]:
    rng = np.random.default_rng(5)
    return [Input.one(rng.integers(3, 500, 3), rng.integers(3, 500, rng.integers(1, 5))) for _ in range(n)]


def test_it_is_split(start, server):
    many, strict = inputs(2 * rollout.MOST + 1), start("qwen2", "--max-inputs", str(rollout.MOST))
    with Client(server.url) as client:
        whole = client.score(many)
    with Client(strict.url) as client:
        with pytest.raises(InvalidRequest):
            client.score(many)
        parts = list(rollout.score(client, many))
        assert list(rollout.score(client, [])) == []
    assert len(parts) == len(many)
    for one, same in zip(parts, whole):
        np.testing.assert_array_equal(one.rewards, same.rewards)


def test_finished_and_unfinished_answers_keep_their_order(server, monkeypatch):
    monkeypatch.setattr(rollout, "MOST", 3)
    asked = [Aligned(one, append_eos=at % 3 == 0) for at, one in enumerate(inputs(20))]
    with Client(server.url, append_eos=True) as client:  # what an answer ends with is the adapter's to say
        scored = rollout.score_aligned(client, asked)
        for (one, append_eos), trajectory in zip(asked, scored):
            np.testing.assert_array_equal(trajectory.rewards, client.score([one], append_eos=append_eos)[0].rewards)
            assert trajectory.length == len(one.responses[0]) + append_eos
        assert rollout.score_aligned(client, []) == []

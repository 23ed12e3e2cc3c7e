"""A whole rollout, in as many requests as it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .. import Client, Input
from ..types import Trajectory
from .align import Aligned

#: Of one request: within what a server takes by default, for answers of up to 32 Ki tokens with their prompts.
MOST = 512


def score(client: Client, inputs: Sequence[Input], **options) -> Iterator[Trajectory]:
    """Of inputs with one response each, in order. What ``normalize`` among the options looks at is one request."""
    for begin in range(0, len(inputs), MOST):
        yield from client.score(inputs[begin : begin + MOST], **options)


def score_aligned(client: Client, asked: Sequence[Aligned]) -> list[Trajectory]:
    """In order. ``append_eos`` is of a request: finished and unfinished answers go apart."""
    scored: list[Trajectory | None] = [None] * len(asked)
    for append_eos in (False, True):
        places = [place for place, one in enumerate(asked) if one.append_eos == append_eos]
        inputs = [asked[place].input for place in places]
        for place, trajectory in zip(places, score(client, inputs, append_eos=append_eos)):
            scored[place] = trajectory
    return scored

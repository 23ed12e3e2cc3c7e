"""How well a peer's log φ agree with the reference's."""

import math
from statistics import fmean
from typing import NamedTuple

LogPhi = list[list[float]]  # of each trajectory, of each response token


class Agreement(NamedTuple):
    mean_abs: float  # mean |Δ| over all response tokens; this and the next two are in nats
    mean: float  # mean Δ: a peer that is off to one side shows here
    max_abs: float
    spearman: float  # rank correlation of the trajectories' mean log φ
    alike: int  # pairs of which the same answer has the higher mean
    pairs: int


def agreement(ours: LogPhi, reference: LogPhi, pairs: list[tuple[int, int]]) -> Agreement:
    if [len(row) for row in ours] != [len(row) for row in reference]:
        raise ValueError("not one log φ for every response token")
    deltas = [a - b for row, expected in zip(ours, reference) for a, b in zip(row, expected)]
    if not all(map(math.isfinite, deltas)):
        raise ValueError("a log φ is not finite")
    means, expected = [fmean(row) for row in ours], [fmean(row) for row in reference]
    return Agreement(
        fmean(map(abs, deltas)),
        fmean(deltas),
        max(map(abs, deltas)),
        spearman(means, expected),
        sum((means[w] > means[l]) == (expected[w] > expected[l]) for w, l in pairs),
        len(pairs),
    )


def ranks(values: list[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    ordered = sorted(values)
    last = {value: rank for rank, value in enumerate(ordered)}
    return [(ordered.index(value) + last[value]) / 2 for value in values]


def spearman(x: list[float], y: list[float]) -> float:
    x, y = ranks(x), ranks(y)
    middle = (len(x) - 1) / 2
    products = lambda u, v: sum((a - middle) * (b - middle) for a, b in zip(u, v))
    spread = math.sqrt(products(x, x) * products(y, y))
    return products(x, y) / spread if spread else math.nan

"""The order of things: everyone's answers first, then rounds in which everyone runs once, then ratios within the rounds."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from agreement import Agreement, agreement
from peers import PEERS
from runs import Failed, Run, Setting, run_peer, run_qrm

REFERENCE = "transformers naive"
# Mean |Δ| in nats from which an f32 peer computes something else, and its speed says nothing.
WRONG = 1e-3


class Entrant(NamedTuple):
    run: Callable[[Setting, Path], Run]
    f32_peer: bool  # one that ratios may be taken to


class Checked(NamedTuple):
    run: Run
    agreement: Agreement


def entrants(with_qrm: bool) -> dict[str, Entrant]:
    """By name, the reference first."""
    found = {name: Entrant(partial(run_peer, name), "int8" not in name) for name in PEERS}
    if with_qrm:
        found |= {f"qrm {dtype}": Entrant(partial(run_qrm, dtype), False) for dtype in ("f32", "bf16", "int8", "int8-all")}
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def check(found: dict[str, Entrant], setting: Setting, output: Path, pairs: list[tuple[int, int]]) -> dict[str, Checked]:
    """What each says, beside the reference. Who cannot run here is skipped."""
    reference = found[REFERENCE].run(setting, output)
    checked = {}
    for name, entrant in found.items():
        try:
            run = reference if name == REFERENCE else entrant.run(setting, output)
            checked[name] = Checked(run, agreement(run.log_phi, reference.log_phi, pairs))
        except (Failed, ValueError) as problem:
            say(f"skipped: {name}: {problem}")
            continue
        say(f"answers: {name}: mean |Δ| {checked[name].agreement.mean_abs:.1e}")
    return checked


def play(found: dict[str, Entrant], setting: Setting, output: Path, repeat: int) -> dict[str, list[float]]:
    """tokens/s in each round. Every round begins with another entrant: what the machine does meanwhile hits them in turn."""
    names = list(found)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeat):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(found[name].run(setting, output).rate)
            say(f"round {i + 1} of {repeat}: {name}: {rates[name][-1]:.1f} tokens/s")
    return rates


def ratios(rates: dict[str, list[float]], candidates: list[str]) -> tuple[str | None, dict[str, float]]:
    """The fastest of the candidates, and everyone's rate over its rate in the same round, at the median."""
    if not candidates:
        return None, {}
    fastest = max(candidates, key=lambda name: median(rates[name]))
    return fastest, {name: median(a / b for a, b in zip(rate, rates[fastest])) for name, rate in rates.items()}

"""Markdown tables, and what machine they are from."""

import os
import platform
import sys
from pathlib import Path


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """The first column to the left, the others, numbers, to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine() -> str:
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def warn_if_busy() -> None:
    """OpenMP's threads wait for each other without sleeping: where one of them has to share its core, peers lose far more than
    their share of the time, and ratios to them say nothing."""
    busy = os.getloadavg()[0]
    if busy > 0.25:
        print(f"WARNING: the load of this machine is {busy:.1f}; numbers count on an idle one only.", file=sys.stderr, flush=True)

"""One peer, alone in its process: how fast it gives log φ of the response tokens, and what it says.

    score.py NAME DIR WORKLOAD OUTPUT --threads N

The workload is scored twice and the second time is timed, so that no peer pays for its first allocations.
"""

import argparse
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path

from peers import PEERS, Task


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    # Bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("workload", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    with args.workload.open() as file:
        trajectories = [json.loads(line) for line in file]
    lengths = [len(t["prompt"]) + len(t["response"]) for t in trajectories]
    load, packages = PEERS[args.name]
    score = load(Task(args.directory, args.threads, max(lengths)))
    score(trajectories)
    start = time.perf_counter()
    log_phi = score(trajectories)
    rate = sum(lengths) / (time.perf_counter() - start)
    versions = {package: importlib.metadata.version(package) for package in packages}
    found = {"tokens_per_s": rate, "log_phi": log_phi, "peak_mib": peak_mib(), "versions": versions}
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

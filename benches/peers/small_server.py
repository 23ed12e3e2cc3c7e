"""Single requests to a small model: this project's server beside a FastAPI server over transformers.

    small_server.py DIR --model CHECKPOINT --qrm-server target/release/qrm-server [--requests 200] [--prompt 40] [--response 40]
                    [--repeat 3] [--threads N]

DIR is what setup.sh made; CHECKPOINT is a small causal language model in Hugging Face layout. Each request has one trajectory of
made-up token ids that no other has, so that no cache helps. The servers take turns. Needs nothing but Python 3.11.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import NamedTuple

from load import Load, connect, exchange, load, ready, request
from rounds import WRONG
from runs import ENVIRONMENT
from table import machine, markdown, warn_if_busy

CLIENTS = (1, 8)
SETTLE = 0.5  # s between two turns: torch's threads spin for a while after their last request, on the cores of the next server
Trajectory = dict[str, list[int]]  # prompt and response, token ids


class Server(NamedTuple):
    name: str
    command: tuple[str | Path, ...]  # less the port
    route: str

    def body(self, trajectory: Trajectory) -> bytes:
        return json.dumps({"inputs": [trajectory]} if self.name == "qrm" else trajectory).encode()

    def rewards(self, answer: bytes) -> list[float]:
        said = json.loads(answer)
        return said["data"][0]["rewards"] if self.name == "qrm" else said["rewards"]


def servers(args: argparse.Namespace) -> list[Server]:
    threads = f"{args.threads}"
    fastapi = (args.dir / "venv/bin/python", Path(__file__).with_name("fastapi_server.py"), args.model, "--threads", threads)
    # As after a while: its cache of prompts is full when the first round is over, and takes no more memory.
    cache = ("--prefix-cache-mib", "8")
    where = ("--device", "cpu", "--dtype", "f32", "--threads", threads)
    qrm = (args.qrm_server, "--model", args.model, *where, *cache, "--grpc-port", "0")
    return [Server("FastAPI", fastapi, "/score"), Server("qrm", qrm, "/v1/rewards")]


@contextlib.contextmanager
def serving(server: Server) -> Iterator[int]:
    """The port that it listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*map(str, server.command), "--port", f"{port}"]
    process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{server.name} does not serve; what it says, one sees with: {' '.join(command)}")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def difference(ports: dict[Server, int], trajectories: list[Trajectory]) -> float:
    """Mean |Δ| of the two servers' log φ."""
    said = []
    for server, port in ports.items():
        with connect(port) as connection:
            answers = [exchange(connection, request(server.route, server.body(t))) for t in trajectories]
        said.append([reward for answer in answers for reward in server.rewards(answer)])
    return fmean(abs(a - b) for a, b in zip(*said, strict=True))


def report(found: dict[tuple[int, str], list[Load]]) -> str:
    rows = []
    for (clients, name), loads in found.items():
        ratio = median(ours.rate / peer.rate for ours, peer in zip(loads, found[clients, "FastAPI"]))
        percentiles = quantiles([1000 * s for measured in loads for s in measured.latencies], n=100)
        rate = median(measured.rate for measured in loads)
        rows.append([name, f"{clients}", f"{rate:.1f}", f"{ratio:.2f}", f"{percentiles[49]:.1f}", f"{percentiles[98]:.1f}"])
    return markdown(["", "clients", "requests/s", "ratio", "p50 ms", "p99 ms"], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Single requests to a small model, beside a FastAPI server.")
    parser.add_argument("dir", type=Path, help="what setup.sh made")
    parser.add_argument("--model", type=Path, required=True, help="a small checkpoint in Hugging Face layout")
    parser.add_argument("--qrm-server", type=Path, required=True, help="the program")
    parser.add_argument("--requests", type=int, default=200, help="of each measurement")
    parser.add_argument("--prompt", type=int, default=40, help="tokens")
    parser.add_argument("--response", type=int, default=40, help="tokens")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server; default: one per core")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    warn_if_busy()
    rng, vocabulary = random.Random(1), json.loads((args.model / "config.json").read_text())["vocab_size"]
    ids = lambda count: [rng.randrange(vocabulary) for _ in range(count)]
    fresh = lambda count: [{"prompt": ids(args.prompt), "response": ids(args.response)} for _ in range(count)]
    peer, own = servers(args)
    found: dict[tuple[int, str], list[Load]] = {(clients, server.name): [] for clients in CLIENTS for server in (peer, own)}
    with serving(peer) as peers_port, serving(own) as own_port:
        ports = {peer: peers_port, own: own_port}
        delta = difference(ports, fresh(8))
        if delta > WRONG:
            sys.exit(f"the servers do not say the same: mean |Δ| of log φ {delta:.1e}")
        for i in range(args.repeat + 1):
            for clients in CLIENTS:
                trajectories = fresh(args.requests)
                for server in (peer, own) if i % 2 else (own, peer):
                    bodies = [server.body(t) for t in trajectories]
                    time.sleep(SETTLE)
                    measured = load(ports[server], server.route, bodies, clients)
                    if i > 0:  # the first round warms both
                        found[clients, server.name].append(measured)
    print(
        f"One trajectory a request, {args.prompt} and {args.response} tokens. {machine()}, threads: {args.threads},"
        f" rounds: {args.repeat}. Mean |Δ| of log φ {delta:.1e}.\n\n{report(found)}"
    )


if __name__ == "__main__":
    main()

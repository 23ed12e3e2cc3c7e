"""A rolling update rehearsed: the signals and times of the Helm chart's pods, behind a real Envoy, and no request lost.

    python3 deploy/envoy/roll.py [path of qrm-server]

Two servers are under load. As the chart has it (maxSurge 1, maxUnavailable 0), a third is started and is ready before the first
leaves: it serves on for `drain.preStopSeconds`, gets SIGTERM, and would be killed at the end of its grace period. Then the second.
"""

import json
import random
import re
import signal
import subprocess
import threading
import time
import urllib.request

from check import ROOT, configuration, envoy, expect, requests_of, run, wait_for

PORTS = [18081, 18082, 18083, 18084]
FRONT = "http://127.0.0.1:8000/v1/rewards"


def drain_times() -> tuple[int, int]:
    """(preStopSeconds, timeoutSeconds) of the chart."""
    text = (ROOT / "deploy/helm/qrm-server/values.yaml").read_text()
    return tuple(int(re.search(rf"^  {name}: (\d+)$", text, re.M)[1]) for name in ("preStopSeconds", "timeoutSeconds"))


class Clients:
    """Rollouts that take seconds and single answers that take none, one after the other, until they are told to stop."""

    def __init__(self, singles: int, rollouts: int):
        self.answered, self.lost, self.longest, self.running = [0, 0], [], 0.0, True
        self.lock = threading.Lock()
        kinds = [(0, 1)] * singles + [(1, 96)] * rollouts
        self.threads = [threading.Thread(target=self.ask, args=(i, kind, size)) for i, (kind, size) in enumerate(kinds)]
        for thread in self.threads:
            thread.start()

    def ask(self, seed: int, kind: int, size: int) -> None:
        rng = random.Random(seed)
        ids = lambda n: [rng.randrange(300) for _ in range(n)]
        while self.running:
            inputs = [{"prompt": ids(128), "response": ids(128)} for _ in range(size)]
            request = urllib.request.Request(FRONT, json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"})
            start, fault = time.monotonic(), None
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    if len(json.load(answer)["data"]) != size:
                        fault = "an answer is not whole"
            except (OSError, ValueError) as error:
                fault = repr(error)
            with self.lock:
                self.longest = max(self.longest, time.monotonic() - start)
                if fault:
                    self.lost.append(fault)
                else:
                    self.answered[kind] += 1

    def stop(self) -> None:
        self.running = False
        for thread in self.threads:
            thread.join()


def start(server: str, port: int, drain: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [server, "--port", str(port), "--grpc-port", "0", "--drain-timeout", str(drain)], stderr=subprocess.DEVNULL
    )
    wait_for(f"http://127.0.0.1:{port}/ready")
    return process


def leave(process: subprocess.Popen, sleep: int, drain: int) -> None:
    """A pod's end."""
    end = time.monotonic() + sleep + drain + 10
    time.sleep(sleep)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    try:
        code = process.wait(end - told)
    except subprocess.TimeoutExpired:
        process.kill()
        code = "killed"
    expect(f"  served {sleep} s, SIGTERM, ended {time.monotonic() - told:.1f} s later of {drain + 10} it had: {code}", code == 0)


def roll(server: str, processes: list[subprocess.Popen]) -> None:
    sleep, drain = drain_times()
    processes += [start(server, port, drain) for port in PORTS[:2]]
    processes.append(subprocess.Popen([envoy(), "-c", configuration(PORTS), "--log-level", "error"]))
    wait_for("http://127.0.0.1:8000/ready")
    clients = Clients(singles=4, rollouts=2)
    try:
        time.sleep(10)
        for old, port in enumerate(PORTS[2:]):
            processes.append(start(server, port, drain))
            # Envoy sees it within two of its health checks.
            time.sleep(4)
            print(f"server {old + 1} leaves, server {old + 3} has come", flush=True)
            leave(processes[old], sleep, drain)
        time.sleep(10)
    finally:
        clients.stop()
    singles, rollouts = clients.answered
    expect(
        f"{singles} single answers and {rollouts} rollouts, the longest {clients.longest:.1f} s; lost: {clients.lost[:3] or 'none'}",
        not clients.lost and min(clients.answered) > 0,
    )
    new = [requests_of(port) for port in PORTS[2:]]
    expect(f"the new servers have answered {new}", min(new) > 0)


if __name__ == "__main__":
    run(roll)

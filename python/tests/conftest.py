"""A real server for the tests: ``QRM_SERVER`` is its binary, else cargo builds it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"


def binary() -> str:
    if path := os.environ.get("QRM_SERVER"):
        return path
    subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bins"], cwd=ROOT, check=True)
    return str(ROOT / "target" / "debug" / "qrm-server")


class Server:
    def __init__(self, model: str | None, *flags: str, port: int = 0):
        command = [binary(), "--port", str(port), "--grpc-port", "0", "--log-format", "json", *flags]
        if model:
            command += ["--model", str(FIXTURES / model)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            entry = json.loads(line)
            self.log.append(entry)
            if entry["fields"].get("message") == "listening":
                break
        else:
            raise RuntimeError(f"the server did not start: {self.log}")
        self.address, self.grpc = entry["fields"]["http"], entry["fields"]["grpc"]
        self.url = f"http://{self.address}"
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start():
    """Starts servers, and stops them in the end."""
    servers = []

    def start(model: str | None = "qwen2", *flags: str, **options) -> Server:
        servers.append(Server(model, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server():
    server = Server("qwen2")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def golden():
    return json.loads((FIXTURES / "qwen2" / "golden.json").read_text())

"""The examples as they are, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from .conftest import FIXTURES  # noqa: E402


def test_a_loop_of_ones_own(server):
    example = Path(__file__).parents[1] / "examples" / "reinforce.py"
    command = [sys.executable, str(example), str(FIXTURES / "qwen2"), server.url, "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("mean reward") == 2

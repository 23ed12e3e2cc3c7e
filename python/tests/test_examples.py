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

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_loop_of_ones_own(server):
    command = [sys.executable, str(EXAMPLES / "reinforce.py"), str(FIXTURES / "qwen2"), server.url, "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("mean reward") == 2


def told(command, tmp_path, **environment) -> str:
    """What an example starts, with `python3` and modules in ``tmp_path`` that only say what they were told."""
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {"PATH": path, "PYTHONPATH": str(tmp_path), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout


def test_verls_workers_get_the_environment(tmp_path):
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    script = ["bash", str(EXAMPLES / "verl.sh"), "algorithm.gamma=1.0"]
    lines = told(script, tmp_path, QRM_URL="http://rewards:8080", QRM_MODEL="orm", QRM_REWARD="outcome").splitlines()
    passed = [line.rpartition(".")[2] for line in lines if line.startswith("+ray_kwargs.ray_init.runtime_env.env_vars.")]
    assert passed == ["QRM_URL=http://rewards:8080", "QRM_ALIGNMENT=ids", "QRM_MODEL=orm", "QRM_REWARD=outcome"]
    assert lines[-1] == "algorithm.gamma=1.0"  # after the example's own


def test_openrlhfs_workers_get_the_environment(tmp_path):
    (tmp_path / "ray.py").write_text("def init(runtime_env): print(sorted(runtime_env['env_vars'].items()))\n")
    package = tmp_path / "openrlhf" / "cli"
    package.mkdir(parents=True)
    for part in (package.parent, package):
        (part / "__init__.py").touch()
    (package / "train_ppo_ray.py").write_text("import sys; print(*sys.argv[1:])\n")
    script = [sys.executable, str(EXAMPLES / "openrlhf" / "train.py"), "--algo.advantage.gamma", "1"]
    variables, arguments = told(script, tmp_path, QRM_MODEL="orm", QRM_REWARD="outcome").splitlines()
    assert variables == "[('QRM_MODEL', 'orm'), ('QRM_REWARD', 'outcome')]"
    assert arguments == "--algo.advantage.estimator reinforce --algo.advantage.gamma 0 --algo.advantage.gamma 1"

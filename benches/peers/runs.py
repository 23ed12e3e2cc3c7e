"""Starting a peer, or this project's own bench, in a process of its own, and reading what it measured."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from agreement import LogPhi

HERE = Path(__file__).parent
# Everything is there already; no peer is to use a GPU that others do not; and errors end with what went wrong.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}


class Failed(Exception):
    """A process that ended badly; the text is the last line of what it said."""


class Setting(NamedTuple):
    """What is the same for all."""

    directory: Path  # as setup.sh makes it
    workload: Path
    threads: int
    qrm: Path | None  # the program qrm-benches
    prefix_cache_mib: int  # its; 0 where nothing is to be shared: the two answers to a question are in different batches


class Run(NamedTuple):
    rate: float  # tokens/s, of prompts and responses together
    log_phi: LogPhi
    computed: float  # share of the tokens, percent: what trajectories share need not be computed for each
    peak_mib: float
    versions: dict[str, str]


def call(command: list[str | Path], environment: dict[str, str] = {}) -> str:
    """What the command prints."""
    words = list(map(str, command))
    try:
        done = subprocess.run(words, env=os.environ | ENVIRONMENT | environment, capture_output=True, text=True)
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise Failed((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return done.stdout


def make_workload(setting: Setting, options: list[str]) -> None:
    """In a process of its own too: so this one needs no tokenizer and stays small, and a child's peak memory begins at what
    its parent has."""
    python = setting.directory / "venv/bin/python"
    call([python, HERE / "workload.py", setting.directory / "model", setting.workload, *options])


def run_peer(name: str, setting: Setting, output: Path) -> Run:
    environment = {"OMP_NUM_THREADS": f"{setting.threads}"}
    python = setting.directory / "venv/bin/python"
    if name == "vLLM":
        python = setting.directory / "vllm/bin/python"
        # One process, so that its peak memory is all there is, and as many threads as the others have.
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    files = [setting.directory, setting.workload, output]
    call([python, HERE / "score.py", name, *files, "--threads", f"{setting.threads}"], environment)
    found = json.loads(output.read_text())
    return Run(found["tokens_per_s"], found["log_phi"], 100.0, found["peak_mib"], found["versions"])


def run_qrm(dtype: str, setting: Setting, output: Path) -> Run:
    # As of the peers, all is scored once before the run that is timed.
    options = {"--dtype": dtype, "--threads": f"{setting.threads}", "--max-batch-tokens": "2048", "--runs": "1"}
    options |= {"--prefix-cache-mib": f"{setting.prefix_cache_mib}"}
    options |= {"--model": str(setting.directory / "model"), "--input": str(setting.workload), "--rewards": str(output)}
    said = call([setting.qrm, "decoder", *(word for option in options.items() for word in option)])
    measured = re.search(r"(\d+) tokens, (\d+) computed: ([\d.]+) tokens/s", said)
    peak = re.search(r"(\d+) MiB in all", said)
    if not measured:
        raise Failed(f"no tokens/s in what it printed: {said!r}")
    tokens, computed, rate = map(float, measured.groups())
    with output.open() as file:
        log_phi = [json.loads(line)["log_phi"] for line in file]
    return Run(rate, log_phi, 100 * computed / tokens, float(peak[1]) if peak else float("nan"), {})

"""Every kernel compiled for every card, and what came of it: registers, shared memory, the instructions meant.

    python3 kernels/cuda-check/compile.py [--write]

A spill, an instruction that is not there, and whatever else the compiler has to say are errors. So is a figure that
is not the one in registers.txt, where that is from the same compiler; --write renews it. Shared memory is what a
kernel declares, without what it is given at its launch. Results are kept in target/cuda/compiled until a source, its
headers, the compiler or this file change.
"""

import concurrent.futures
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "kernels" / "src" / "cuda"
RESULTS = ROOT / "target" / "cuda" / "compiled"
TABLE = HERE / "registers.txt"

# A100; RTX 30; L4 and RTX 40; H100 and H200; B200. Cards that come later get the PTX that is in the binary, which
# their driver compiles: the last is that PTX, compiled for such a card.
TARGETS = {
    "sm_80": "arch=compute_80,code=sm_80",
    "sm_86": "arch=compute_86,code=sm_86",
    "sm_89": "arch=compute_89,code=sm_89",
    "sm_90a": "arch=compute_90a,code=sm_90a",
    "sm_100": "arch=compute_100,code=sm_100",
    "ptx_80": "arch=compute_80,code=sm_120",
}
FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v"]

# What is counted, by SASS's names: multiplies of a warp and of four on the tensor cores; their tiles out of shared
# memory; copies into it, 16 bytes a thread and a tile at a time; loads and stores of 16 bytes.
INSTRUCTIONS = {
    "HMMA": r"HMMA\.16816\.F32",
    "HGMMA": r"HGMMA\.64x",
    "LDSM": r"LDSM\.16\.",
    "LDGSTS": r"LDGSTS\.E\..*128",
    "UTMALDG": r"UTMALDG\.",
    "LDG": r"LDG\.E\..*128",
    "STG": r"STG\.E\..*128",
}
FIGURES = ["registers", "shared", "stack", "spilled", *INSTRUCTIONS]
# Which of them a kernel must have, and for which cards.
RULES = [
    (r"(token_reward|attention)_mma_", TARGETS, ["HMMA", "LDSM", "LDGSTS"]),
    (r"token_reward_wgmma_", ["sm_90a"], ["HGMMA", "UTMALDG"]),
    (r"attention_wgmma_", ["sm_90a"], ["HGMMA", "LDGSTS"]),
    (r"(embed|rms_norm|swiglu|keys_values|dequantize|token_logits_backward)_", TARGETS, ["LDG", "STG"]),
    (r"(row_dot|logits_reduce)_", TARGETS, ["LDG"]),
]


def output(*command) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def with_headers(source: Path) -> str:
    text = source.read_text()
    return text + "".join(with_headers(SOURCES / name) for name in re.findall(r'#include [<"](\w+\.cuh)', text))


def compiled(nvcc: Path, source: Path, target: str, key: str) -> dict:
    """A source for a card: {"said": lines of the compiler that are not figures, "kernels": {name: figures}}."""
    result = RESULTS / f"{source.stem}.{target}.{key}.json"
    if not result.exists():
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "cubin"
            command = [nvcc, *FLAGS, "-cubin", "-gencode", TARGETS[target], "-o", cubin, source]
            run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if run.returncode:
                sys.exit(f"{source.name} for {target}:\n{run.stdout}")
            sass = output(nvcc.parent / "cuobjdump", "-sass", cubin)
        said, kernels = read_log(run.stdout)
        for kernel, counts in read_sass(sass).items():
            kernels[kernel] |= counts
        for old in RESULTS.glob(f"{source.stem}.{target}.*.json"):
            old.unlink(missing_ok=True)
        result.write_text(json.dumps({"said": said, "kernels": kernels}))
    return json.loads(result.read_text())


def read_log(log: str) -> tuple[list, dict]:
    """`ptxas -v`. Functions that were not inlined come after their kernel, and count as part of it."""
    said, kernels, kernel = [], {}, {}
    for line in log.splitlines():
        if match := re.match(r"ptxas info\s+: Compiling entry function '(\w+)'", line):
            kernel = kernels[match[1]] = dict.fromkeys(FIGURES, 0)
        elif match := re.fullmatch(r"\s+(\d+) bytes stack frame, (\d+) bytes spill \w+, (\d+) bytes spill \w+", line):
            kernel["stack"] += int(match[1])
            kernel["spilled"] += int(match[2]) + int(match[3])
        elif match := re.match(r"ptxas info\s+: Used (\d+) registers(?:.* (\d+) bytes smem)?", line):
            kernel["registers"], kernel["shared"] = int(match[1]), int(match[2] or 0)
        elif line and not re.match(r"ptxas info\s+: (\d+ bytes gmem|Function properties for|Compile time)", line):
            said.append(line)
    return said, kernels


def read_sass(sass: str) -> dict:
    """How many of the INSTRUCTIONS each kernel has."""
    kernels, counts = {}, {}
    for line in sass.splitlines():
        if match := re.fullmatch(r"\s+Function : (\w+)", line):
            counts = kernels[match[1]] = dict.fromkeys(INSTRUCTIONS, 0)
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?(\S+)", line):
            for instruction, spelled in INSTRUCTIONS.items():
                counts[instruction] += bool(re.match(spelled, match[1]))
    return kernels


def broken(kernels: dict):
    """Errors, whatever the table says."""
    for (name, target), kernel in kernels.items():
        if kernel["spilled"]:
            yield f"{name} for {target} spills {kernel['spilled']} bytes"
    for pattern, targets, instructions in RULES:
        held_to_it = [at for at in kernels if re.match(pattern, at[0]) and at[1] in targets]
        if not held_to_it:
            yield f"no kernel is called {pattern}"
        for at in held_to_it:
            yield from (f"{at[0]} for {at[1]} has no {i}" for i in instructions if not kernels[at][i])


def aligned(rows: list) -> str:
    first, *others = (max(map(len, column)) for column in zip(*rows))
    line = lambda name, *cells: "  ".join([name.ljust(first), *map(str.rjust, cells, others)])
    return "".join(line(*row) + "\n" for row in rows)


def full(compiler: str, kernels: dict) -> str:
    rows = [[*at, *(str(kernels[at][figure]) for figure in FIGURES)] for at in kernels]
    return f"# {compiler}\n" + aligned([["kernel", "target", *FIGURES], *rows])


def summary(kernels: dict) -> str:
    """A line for each kernel: its registers for all cards, the rest for Hopper."""
    columns = [*((target, "registers") for target in TARGETS), *(("sm_90a", figure) for figure in FIGURES[1:])]
    cell = lambda name, target, figure: str(kernels[name, target][figure]) if (name, target) in kernels else "-"
    names = dict.fromkeys(name for name, _ in kernels)
    rows = [[name, *(cell(name, *column) for column in columns)] for name in names]
    return aligned([["registers", *TARGETS, *FIGURES[1:]], *rows])


def main() -> int:
    nvcc = Path(output(HERE / "toolkit.sh").strip()) / "bin" / "nvcc"
    compiler = "nvcc " + re.search(r"V([\d.]+)", output(nvcc, "--version"))[1]
    RESULTS.mkdir(parents=True, exist_ok=True)
    common = compiler + Path(__file__).read_text()
    jobs = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for source in sorted(SOURCES.glob("*.cu")):
            key = hashlib.sha256((common + with_headers(source)).encode()).hexdigest()[:16]
            for target in TARGETS:
                jobs[source.name, target] = pool.submit(compiled, nvcc, source, target, key)
    results = {at: job.result() for at, job in jobs.items()}
    found = {(name, target): kernel for (_, target), r in results.items() for name, kernel in r["kernels"].items()}
    kernels = {at: found[at] for at in sorted(found, key=lambda at: (at[0], list(TARGETS).index(at[1])))}
    print(summary(kernels))

    errors = [f"{source} for {target}: {line}" for (source, target), r in results.items() for line in r["said"]]
    errors += broken(kernels)
    new = full(compiler, kernels)
    if "--write" in sys.argv[1:]:
        TABLE.write_text(new)
    old = TABLE.read_text() if TABLE.exists() else ""
    if old and not old.startswith(f"# {compiler}\n"):
        print(f"{TABLE.name} is from another compiler than {compiler}: not compared")
    else:
        errors += difflib.unified_diff(old.splitlines(), new.splitlines(), TABLE.name, "compiled", lineterm="", n=0)
    print(*errors or [f"{len(kernels)} kernels as they should be ({compiler})"], sep="\n")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())

"""Peers and this project's own decoder side by side: tokens/s, and whether they say the same.

    compare.py DIR [--qrm target/release/qrm-benches] [--pairs FILE.jsonl] [--answers 32] [--group 1] [--shared-prefix TOKENS]
               [--only NAME] [--repeat 3] [--threads N] [--json FILE]

DIR is what setup.sh made. Needs nothing but Python 3.11.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from rounds import REFERENCE, WRONG, Checked, check, entrants, play, ratios, say
from runs import Failed, Setting, make_workload
from table import machine, markdown, warn_if_busy
from workload import pairs

HEAD = ["", "tokens/s", "ratio", "computed", "mean abs Δ", "mean Δ", "max abs Δ", "Spearman", "pairs alike", "peak MiB"]


def line(name: str, rates: list[float], ratio: float | None, checked: Checked) -> list[str]:
    run, a = checked
    return [
        name,
        f"{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})",
        "" if ratio is None else f"{ratio:.2f}",
        f"{run.computed:.0f} %",
        f"{a.mean_abs:.1e}",
        f"{a.mean:+.1e}",
        f"{a.max_abs:.1e}",
        f"{a.spearman:.4f}",
        f"{a.alike} of {a.pairs}",
        f"{run.peak_mib:.0f}",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peers and this project's decoder side by side.")
    parser.add_argument("dir", type=Path, help="what setup.sh made")
    parser.add_argument("--qrm", type=Path, help="the program qrm-benches; without it only peers are compared")
    parser.add_argument("--pairs", type=Path, help='JSONL of {"instruction", "chosen", "rejected"}; else problems are made up')
    parser.add_argument("--answers", type=int, default=32, help="trajectories in all")
    parser.add_argument("--group", type=int, default=1, help="answers under each prompt")
    parser.add_argument("--shared-prefix", type=int, default=0, help="tokens of worked examples that all prompts begin with")
    parser.add_argument("--only", action="append", default=[], help="those whose name has this in it; may be given again")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of everyone; default: one per core")
    parser.add_argument("--json", type=Path, help="every number, for later")
    return parser.parse_args()


def compare(args: argparse.Namespace, scratch: Path) -> None:
    is_shared = args.group > 1 or args.shared_prefix > 0
    setting = Setting(args.dir, scratch / "workload.jsonl", args.threads, args.qrm, 512 if is_shared else 0)
    shape = {"--answers": args.answers, "--group": args.group, "--shared-prefix": args.shared_prefix, "--pairs": args.pairs}
    make_workload(setting, [f"{name}={value}" for name, value in shape.items() if value is not None])
    trajectories = [json.loads(row) for row in setting.workload.read_text().splitlines()]
    prompts, responses = (sum(len(t[part]) for t in trajectories) for part in ("prompt", "response"))
    title = f"{len(trajectories)} answers, {args.group} a prompt, {prompts + responses} tokens, {responses} of them response"
    say(title)

    picked = lambda name: not args.only or any(part in name for part in args.only)
    found = {name: e for name, e in entrants(args.qrm is not None).items() if picked(name) or name == REFERENCE}
    checked = check(found, setting, scratch / "output", pairs(len(trajectories), args.group))
    found = {name: e for name, e in found.items() if picked(name) and name in checked}
    rates = play(found, setting, scratch / "output", args.repeat)
    wrong = [name for name, e in found.items() if e.f32_peer and checked[name].agreement.mean_abs > WRONG]
    fastest, ratio = ratios(rates, [name for name, e in found.items() if e.f32_peer and name not in wrong])
    for name in wrong:
        ratio.pop(name, None)

    print(f"{title}. {machine()}, threads: {args.threads}, rounds: {args.repeat}.\n")
    print(markdown(HEAD, [line(name, rates[name], ratio.get(name), checked[name]) for name in found]))
    versions = {package: version for c in checked.values() for package, version in c.run.versions.items()}
    print(f"\nratio: to {fastest}. Δ: of log φ, to {REFERENCE}. " + ", ".join(map(" ".join, versions.items())) + ".")
    for name in wrong:
        print(f"Left out of the ratios: {name}, whose log φ are not those of the model.")
    if args.json:
        numbers = {
            name: {"tokens_per_s": rates[name], "ratio": ratio.get(name), "computed_percent": checked[name].run.computed}
            | {"agreement": checked[name].agreement._asdict(), "peak_mib": checked[name].run.peak_mib}
            for name in found
        }
        about = {"workload": title, "machine": machine(), "threads": args.threads, "versions": versions, "ratio_to": fastest}
        args.json.write_text(json.dumps(about | {"entrants": numbers}, indent=1) + "\n")


def main() -> None:
    args = arguments()
    warn_if_busy()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            compare(args, Path(scratch))
        except Failed as problem:
            sys.exit(f"failed: {problem}")


if __name__ == "__main__":
    main()

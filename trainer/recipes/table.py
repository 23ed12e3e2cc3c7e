"""The evaluations that compare.sh left in a directory, as Markdown tables: mean ± standard deviation over seeds."""

import json
import statistics
import sys
from pathlib import Path

SETS = ["sampled", "greedy", "slips"]
FIGURES = [("pair accuracy", "accuracy"), ("credit AUC", "credit_auc"), ("first wrong token lowest", "credit_found")]
# What is shown, and from which model's which reading.
ROWS = [
    ("random rewards", "backbone", "noise"),
    ("untrained backbone, log φ", "backbone", "advantage"),
    ("untrained backbone, mean logit", "backbone", "logit"),
    ("Q-RM vocab, logit (trained on)", "qrm-vocab", "logit"),
    ("Q-RM vocab, log φ", "qrm-vocab", "advantage"),
    ("Q-RM scalar", "qrm-scalar", "logit"),
    ("ORM, at the last token", "orm", "outcome"),
    ("ORM, read at every token", "orm", "logit"),
    ("PRM, a step's reward on its tokens", "prm", "step"),
    ("PRM, read at every token", "prm", "logit"),
    ("DPO-RM", "dpo", "dpo"),
]


def cell(directory: Path, model: str, data: str, reading: str, figure: str) -> str:
    paths = [directory / f"{model}-{data}.json", *sorted(directory.glob(f"{model}-[0-9]-{data}.json"))]
    readings = [json.loads(p.read_text())["readings"].get(reading, {}) for p in paths if p.exists()]
    values = [r[figure] for r in readings if figure in r]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main() -> None:
    directory = Path(sys.argv[1])
    for title, figure in FIGURES:
        print(f"\n| {title} | " + " | ".join(SETS) + " |")
        print("|---" * (len(SETS) + 1) + "|")
        for name, model, reading in ROWS:
            cells = [cell(directory, model, data, reading, figure) for data in SETS]
            print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

"""Make docs/results.md of the log that cifar10.py writes: nothing in it is typed.

python benchmarks/results.py [--log benchmarks/logs/cifar10.jsonl] [--out docs/results.md]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cifar_rows import SCHEDULES, TABLES, Row
from tabulate import tabulate

HERE = Path(__file__).parent
PAPER = {20: (91.86, 91.19, 29.63), 32: (92.24, 91.82, 46.81), 44: (92.85, 92.16, 53.03)}
PAPER |= {56: (93.09, 92.48, 59.30), 110: (93.58, 92.61, 66.47), 1202: (94.04, 93.06, 72.71)}
SIZES = (1.4, 1.2, 1.0, 0.8, 0.6)
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""The 97.5 % quantile of Student's t by degrees of freedom."""

NAMES = {
    "mbs": "MBS",
    "uniform": "uniform α",
    "uniform-flops": "uniform α, equal multiply-adds",
    "torch-pruning": "Torch-Pruning",
    "original": "original",
}

Lines = list[dict[str, Any]]


class Log:
    """The lines of the log, picked by what they are."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def of(self, **wanted: Any) -> Lines:
        return [line for line in self.lines if all(line[name] == value for name, value in wanted.items())]

    def distinct(self, name: str, **wanted: Any) -> list[Any]:
        return sorted({line[name] for line in self.of(**wanted)})


def accuracy(lines: Lines) -> str:
    """Mean and deviation over seeds, in percent."""
    if not lines:
        return "not run"
    values = [100 * line["accuracy"] for line in lines]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({len(values)})"


def table(rows: list[tuple], headers: tuple[str, ...]) -> list[str]:
    return [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True), ""]


def ahead(first: Lines, second: Lines) -> str:
    """The difference in percentage points over the seeds that both have."""
    by_seed = [{line["seed"]: 100 * line["accuracy"] for line in lines} for lines in (first, second)]
    gaps = [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]
    if not gaps:
        return ""
    spread = f" ± {stdev(gaps):.2f}" if len(gaps) > 1 else ""
    return f"{mean(gaps):+.2f}{spread}, ahead in {sum(gap > 0 for gap in gaps)} of {len(gaps)} seeds{verdict(gaps)}"


def verdict(gaps: list[float]) -> str:
    """Whether the difference of two means is significant: a paired t test at 95 %."""
    if len(gaps) - 1 not in STUDENT or not stdev(gaps):
        return ""
    apart = abs(mean(gaps)) > STUDENT[len(gaps) - 1] * stdev(gaps) / len(gaps) ** 0.5
    return ", significant" if apart else ", no significant difference"


def schedules(log: Log) -> list[str]:
    """What the schedules are, and where and how long they ran."""
    out = ["## Schedules", ""]
    for name in log.distinct("schedule"):
        recipe, small = SCHEDULES[name].recipe, SCHEDULES[name].small
        lines = [line for line in log.of(schedule=name) if line["seconds"]]
        shape = f"divided by 10 at {recipe.drops} of the epochs" if recipe.schedule == "steps" else "one cycle"
        crops = f", the first {small} on crops of 24 x 24 pixels" if small else ""
        hours = sum(line["seconds"] for line in lines) / 3600
        out.append(
            f"- `{name}`: {recipe.epochs} epochs{crops}; batch {recipe.batch}, learning rate {recipe.lr:g} {shape}, "
            f"weight decay {recipe.weight_decay:g}, Nesterov {'on' if recipe.nesterov else 'off'}. "
            f"{len(lines)} runs, {hours:.1f} hours of training."
        )
    machines = ", ".join(
        f"{m} with torch {t}" for m, t in sorted({(x["machine"], x["versions"]["torch"]) for x in log.lines})
    )
    return [
        *out,
        "",
        f"Machines: {machines}. Threads a run: {log.distinct('threads')}. Hours were taken beside other work.",
        "",
    ]


def table1(log: Log, schedule: str) -> list[str]:
    rows = []
    for depth in log.distinct("depth", schedule=schedule):
        of = {"depth": depth, "schedule": schedule, "k": 1.0}
        whole, fresh = (
            log.of(method="original", init="fresh", **of),
            log.of(method="mbs", init="fresh", distill=False, **of),
        )
        taught = log.of(method="mbs", init="inherited", distill=True, **of)
        if not (whole and fresh):
            continue
        paper = "{:.2f} → {:.2f}, {:.2f} % fewer".format(*PAPER[depth])
        params = fresh[0]["params"]
        rows.append((f"ResNet-{depth}", accuracy(whole), accuracy(fresh), accuracy(taught), f"{params:,}", paper))
    headers = ("network", "original", "MBS, fresh", "MBS, inherited and distilled", "parameters", "paper")
    return ["### Table 1: z = L", "", *table(rows, headers)] if rows else []


def fig4(log: Log, schedule: str) -> list[str]:
    of = {"method": "mbs", "init": "fresh", "distill": False, "schedule": schedule}
    rows = []
    for depth in log.distinct("depth", **of):
        for k in SIZES:
            lines = log.of(depth=depth, k=k, **of)
            if lines:
                rows.append(
                    (f"ResNet-{depth}", f"{k:g} L", str(lines[0]["widths"]), f"{lines[0]['params']:,}", accuracy(lines))
                )
    if len(rows) < 2:
        return []
    return [
        "### Figure 4: z from 1.4 L to 0.6 L",
        "",
        *table(rows, ("network", "z", "widths", "parameters", "accuracy")),
    ]


def versus(log: Log, title: str, init: str, distill: bool, schedule: str) -> list[str]:
    """MBS against the others at equal size, from the same start."""
    of = {"init": init, "distill": distill, "schedule": schedule}
    groups: dict[tuple[int, float], dict[str, Lines]] = defaultdict(dict)
    for depth in log.distinct("depth", **of):
        for k in SIZES:
            for method in ("mbs", "uniform", "uniform-flops", "torch-pruning"):
                if lines := log.of(depth=depth, k=k, method=method, **of):
                    groups[depth, k][method] = lines
    rows = [
        (
            f"ResNet-{depth}", f"{k:g} L", NAMES[method], str(lines[0]["widths"]), f"{lines[0]['params']:,}",
            f"{lines[0]['flops'] / 1e6:.1f}", *before(lines), accuracy(lines),
            "" if method == "mbs" else ahead(found["mbs"], lines),
        )
        for (depth, k), found in groups.items()
        if "mbs" in found and len(found) > 1
        for method, lines in found.items()
    ]  # fmt: skip
    if not rows:
        return []
    untrained = ("not retrained",) if init != "fresh" else ()
    headers = ("network", "size of MBS at", "method", "widths", "parameters", "MFLOP", *untrained, "accuracy")
    originals = [
        f"The original ResNet-{line['depth']} has {100 * line['accuracy']:.2f} %."
        for line in log.of(method="original", init="inherited", schedule=schedule)
        if init != "fresh"
    ]
    return [f"### {title}", "", *(f"{line}\n" for line in originals), *table(rows, (*headers, "MBS minus this"))]


def before(lines: Lines) -> list[str]:
    """Accuracy of weights that nobody trained again."""
    return [f"{100 * mean(line['before'] for line in lines):.2f}"] if lines[0]["init"] != "fresh" else []


def follows(log: Log) -> list[str]:
    """Pairs that differ in one thing: what it was worth."""
    out = []
    changes = (
        ("the original as teacher (weights inherited)", {"distill": True}, {"distill": False}, {"init": "inherited"}),
        ("inherited weights (no teacher)", {"init": "inherited"}, {"init": "fresh"}, {"distill": False}),
    )
    for what, one, other, both in changes:
        for schedule, depth, k in sorted({(x["schedule"], x["depth"], x["k"]) for x in log.lines}):
            of = {"schedule": schedule, "depth": depth, "k": k, "method": "mbs", **both}
            if gap := ahead(log.of(**of, **one), log.of(**of, **other)):
                out.append(f"- {what}: {gap}; MBS, ResNet-{depth}, {k:g} L, `{schedule}`")
    return ["## One thing changed", "", *out, ""] if out else []


def open_rows(log: Log) -> list[str]:
    """How much of the paper's tables nobody has run by the paper's schedule."""
    names = [field.name for field in fields(Row)]
    done = {Row(**{name: line[name] for name in names}) for line in log.lines}
    out = ["## Not run", "", "By schedule `paper`, of ResNet-20, 32 and 56 with 3 seeds:", ""]
    for name, rows_of in TABLES.items():
        rows = rows_of([20, 32, 56], [0, 1, 2], "paper")
        out.append(f"- `{name}`: {len(set(rows) - done)} of {len(rows)} runs")
    return [*out, ""]


def page(lines: Lines) -> str:
    log = Log(lines)
    out = [
        "# Results", "",
        "Made by `python benchmarks/results.py` of `benchmarks/logs/cifar10.jsonl`, a line per run; "
        "`benchmarks/cifar10.py` says how to run a row again. CIFAR-10, accuracy in % on the 10,000 test images after "
        "the last epoch: mean ± standard deviation (number of seeds). Differences are of the same seeds; significance "
        "is that of a paired t test at 95 %. Equal size is as near in parameters as a method comes; "
        "multiply-adds (of the convolutions, MFLOP) are not equal. A depth has one trained original, and a size "
        "one plan: seeds vary the training alone.", "",
        *schedules(log),
    ]  # fmt: skip
    for schedule in log.distinct("schedule"):
        out += [
            f"## By schedule `{schedule}`", "",
            *table1(log, schedule), *fig4(log, schedule),
            *versus(log, "Figure 5: one factor for every layer, fresh weights", "fresh", False, schedule),
            *versus(log, "Equal size, inherited weights, the original as teacher", "inherited", True, schedule),
            *versus(log, "Equal size, inherited weights", "inherited", False, schedule),
            *versus(log, "Reconstructed weights", "reconstructed", False, schedule),
        ]  # fmt: skip
    return "\n".join([*out, *follows(log), *open_rows(log)]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--log", type=Path, default=HERE / "logs/cifar10.jsonl")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/results.md")
    args = parser.parse_args()
    args.out.write_text(page([json.loads(line) for line in args.log.read_text().splitlines()]))


if __name__ == "__main__":
    main()

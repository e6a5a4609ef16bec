"""The pages that `coverage.py` writes from its log: what it found by side (mbs, module, peer) and network."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

Rows = Mapping[tuple[str, str], Mapping[str, Any]]

MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
COLUMNS = (
    *("network", "M params", "trace", "fewer params", "layers reduced", "s", "GiB", "zeroed = reduced"),
    *("mbs_fx", "Torch-Pruning"),
)


def page(done: Rows) -> str:
    """docs/coverage.md: torchvision and timm."""
    how = _how("benchmarks/coverage.py", "*s* is analysis, plan and rewrite in a process of its own, ")
    return f"# Coverage\n\n{how}{_totals(done)}{_table(done, COLUMNS)}"


def libraries(done: Rows, listed: int) -> str:
    """docs/coverage-libraries.md: a table by library, then one line a network; ``listed`` are those to run."""
    columns = (*(column for column in COLUMNS[:-1] if column != "s"), "module", COLUMNS[-1])
    return (
        f"# Networks of other libraries\n\n{_how('benchmarks/coverage.py --zoo')}{_totals(done)}"
        f"`benchmarks/zoo.py` lists {listed} networks; {len(_of(done, 'mbs'))} of them were run for this page.\n\n"
        "*module* is the same plan applied to the `nn.Module` itself: its output is the graph's, and it trains. *own* "
        "code is the class's own; where that counts channels, traced code stands in for it, in the modules named or as "
        f"a whole.\n\n{_by_library(done)}\n\n{_table(done, columns)}"
    )


def _how(command: str, more: str = "") -> str:
    return (
        f"Made by `python {command}` (uniform β = 0.75; {MACHINE}). What is checked is in `benchmarks/proof.py`; {more}"
        "*GiB* is the peak memory of all checks.\n\n"
    )


def _of(done: Rows, side: str) -> dict[str, Mapping[str, Any]]:
    return {name: row for (at, name), row in done.items() if at == side}


def _totals(done: Rows) -> str:
    mine, peers = _of(done, "mbs"), _of(done, "peer")
    good = [row for row in mine.values() if "failed" not in row]
    exact = [row for row in good if row["faithful"] is True]
    pruned = [row for row in peers.values() if "failed" not in row]
    text = (
        f"**{len(good)} of {len(mine)} networks pass every check**; in {len(exact)} of them the original with removed "
        "channels set to zero gives the reduced network's output (relative difference under 1e-4 in float64); the "
        "others hold opaque segments or statistics over channels, named in the table. "
    )
    if not peers:
        return f"{text}Torch-Pruning was not run.\n\n"
    left = len(mine.keys() - peers.keys())
    return f"{text}Torch-Pruning prunes {len(pruned)} of {len(peers)}{f'; {left} were not run' if left else ''}.\n\n"


def _by_library(done: Rows) -> str:
    """How many networks of each library pass, as graphs and as modules, and by Torch-Pruning."""
    from tabulate import tabulate

    names = sorted({name.split("/")[0] for _, name in done})
    rows = [(name, *(_count(done, side, name) for side in ("mbs", "module", "peer"))) for name in names]
    return tabulate(rows, ("library", "mbs_fx", "mbs_fx, module", "Torch-Pruning"), tablefmt="github")


def _count(done: Rows, side: str, library: str) -> str:
    rows = [row for name, row in _of(done, side).items() if name.startswith(f"{library}/")]
    return f"{sum('failed' not in row for row in rows)} of {len(rows)}" if rows else "not run"


def _table(done: Rows, columns: tuple[str, ...]) -> str:
    from tabulate import tabulate

    rows = _of(done, "mbs").values()
    lines = [
        [_cell(done, row, column) for column in columns]
        for row in sorted(rows, key=lambda row: (row["network"].startswith("timm"), row["network"]))
    ]
    return tabulate(lines, columns, tablefmt="github") + "\n"


def _cell(done: Rows, row: Mapping[str, Any], column: str) -> Any:
    other = {"module": "module", "Torch-Pruning": "peer"}.get(column)
    if other is not None:
        found = done.get((other, row["network"]), {"failed": "not run"})
        return found.get("failed", _code(found))
    return {
        "network": row["network"],
        "M params": f"{row.get('parameters', 0) / 1e6:.1f}",
        "trace": row.get("tracing", ""),
        "fewer params": f"{row.get('reduction', 0):.1%}",
        "layers reduced": f"{row.get('convs', 0) - row.get('kept', 0)} / {row.get('convs', 0)}",
        "s": row.get("seconds", ""),
        "GiB": row.get("memory", ""),
        "zeroed = reduced": "yes" if row.get("faithful") is True else str(row.get("faithful", "")),
        "mbs_fx": row.get("failed", "passes"),
    }[column]


def _code(row: Mapping[str, Any]) -> str:
    """What the reduced module runs; of Torch-Pruning only that it passes is known."""
    text = row.get("code", "passes")
    return text.split(":")[0].replace(" counts channels in its code", "") + ": traced" if "traced" in text else text

"""Every figure of benchmarks/README.md by one command, kept beside those of earlier runs.

    python benchmarks/run_all.py --quick [--data DIR] [--only REGEX]

Each script runs in a process of its own, one after the other, and what it prints goes into one page:
``logs/run-DATE.md``, with machine, versions, commit and the seconds that each took; no folder of the machine is named
there.  Without ``--quick`` the scripts repeat as often as the README says.  A script that needs data which is not
there, or that fails, stands in the page with the reason; the others go on.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("mbs-fx", "torch", "torchvision", "torch-pruning", "timm", "numpy")


@dataclass(frozen=True)
class Script:
    """One script with its arguments; ``data`` where it needs the folder of CIFAR-10, which pages call DIR."""

    name: str
    full: str = ""
    quick: str = ""
    data: bool = False

    def command(self, quick: bool, data: Path | None) -> list[str]:
        """What is run, without the interpreter."""
        words = (self.quick if quick else self.full).split()
        return [f"benchmarks/{self.name}.py", *words, *(["--data", str(data)] if self.data else [])]


SCRIPTS = (
    Script("paper_tables", quick="--only configurations"),
    Script("speed", full="--runs 3", quick="--runs 1"),
    Script("speed", full="--memory", quick="--memory"),
    Script("tracing", full="--runs 3", quick="--runs 1"),
    Script("tracing", full="--modules --runs 3", quick="--modules --runs 1 --only CIFAR"),
    Script("density", full="--repetitions 5", quick="--repetitions 1"),
    Script("import_time", quick="--runs 3"),
    Script("bench_table", quick="--repetitions 3"),
    Script("throughput", full="--repetitions 3", quick="--images 640 --repetitions 1", data=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="as few repetitions as give a number")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 (cifar.py says from where)")
    parser.add_argument("--only", default="", help="regular expression on names of scripts")
    parser.add_argument("--limit", type=int, default=3600, help="seconds for one script")
    args = parser.parse_args()
    now = datetime.now().astimezone()
    page = HERE / "logs" / f"run-{now:%Y-%m-%d-%H%M}.md"
    page.write_text("\n".join(heading(now, args.quick)) + "\n")
    for script in SCRIPTS:
        if not re.search(args.only, script.name):
            continue
        text = section(script, args.quick, args.data, args.limit)
        print(text, flush=True)
        with page.open("a") as file:
            file.write(text)
    print(page)


def heading(now: datetime, quick: bool) -> Iterator[str]:
    """Where and with what the page was made."""
    yield f"# Benchmarks, {now:%Y-%m-%d %H:%M}{' (quick)' * quick}"
    yield ""
    yield f"- {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
    yield f"- Python {platform.python_version()}, " + ", ".join(f"{name} {installed(name)}" for name in PACKAGES)
    yield f"- commit {commit()}"


def section(script: Script, quick: bool, data: Path | None, limit: int) -> str:
    """What one script prints, or why it does not."""
    if script.data and data is None:
        return f"\n## {script.name}\n\nNot run: it needs --data.\n"
    command = script.command(quick, data)
    shown = script.command(quick, Path("DIR"))
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=HERE.parent, capture_output=True, text=True, timeout=limit, check=False
        )
        failed = f"\nexit status {done.returncode}: {done.stderr.strip()[-500:]}" if done.returncode else ""
        printed = done.stdout.strip("\n") + failed
    except subprocess.TimeoutExpired:
        printed = f"no result within {limit} s"
    seconds = time.monotonic() - start
    text = without_folders(printed, data)
    return f"\n## {script.name}\n\n`python {' '.join(shown)}`, {seconds:.0f} s\n\n```\n{text}\n```\n"


def without_folders(text: str, data: Path | None) -> str:
    """What a script printed, with the folders of this machine by what they are."""
    known = {"DIR": data, "PYTHON": Path(sys.prefix), "CHECKOUT": HERE.parent, "HOME": Path.home()}
    for name, folder in known.items():
        for path in (folder.absolute(), folder.resolve()) if folder is not None else ():
            text = text.replace(str(path), name) if path.name else text
    return text


def processor() -> str:
    """The name of the CPU, and the widest vectors that torch takes there."""
    import torch

    told = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", told.read_text()) if told.exists() else []
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of the checkout, marked where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

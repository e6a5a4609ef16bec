"""How long ``import mbs_fx``, with every public name, adds to ``import torch``; aim 0.3 s.

    python benchmarks/import_time.py [--runs 11]

Prints both imports, and which packages mbs_fx loads that torch had not; exits 1 over the aim.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from tabulate import tabulate
from tqdm import tqdm

AIM = 0.3

TIMED = """
import json, sys, time
start = time.perf_counter()
import torch
between = time.perf_counter()
before = set(sys.modules)
from mbs_fx import *
end = time.perf_counter()
added = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"torch": between - start, "mbs_fx": end - between, "added": added}))
"""


def once() -> dict:
    """One fresh process, which finds byte code as after an installation, or leaves it for the next."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run([sys.executable, "-c", TIMED], capture_output=True, text=True, check=True, env=env)
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    once()  # byte code and the file cache
    runs = [once() for _ in tqdm(range(args.runs), disable=None)]
    rows = [
        (f"import {name}", *(f(run[name] for run in runs) for f in (min, statistics.median, max)))
        for name in ("torch", "mbs_fx")
    ]
    print(tabulate(rows, headers=("", "min s", "median s", "max s"), floatfmt=".3f"))
    print(f"packages that mbs_fx adds: {', '.join(runs[0]['added'])}")
    median = rows[1][2]
    print(f"{'within' if median <= AIM else 'OVER'} the aim of {AIM} s")
    sys.exit(median > AIM)


if __name__ == "__main__":
    main()

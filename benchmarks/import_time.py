"""What ``import mbs_fx`` with every public name adds to ``import torch``, and what ``mbs-fx --help`` takes.

    python benchmarks/import_time.py [--runs 11]

In CPU seconds of fresh processes, beside the aims, with the packages that mbs_fx loads and torch had not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

AIMS = {"import torch": "", "import mbs_fx, over torch": 0.2, "mbs-fx --help": 0.5}

TIMED = """
import json, sys, time
start = time.process_time()
import torch
between = time.process_time()
before = set(sys.modules)
from mbs_fx import *
end = time.process_time()
added = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"import torch": between - start, "import mbs_fx, over torch": end - between, "added": added}))
"""


HELP = """
import json, sys, time
from contextlib import redirect_stdout, suppress
from io import StringIO
with redirect_stdout(StringIO()), suppress(SystemExit):
    from mbs_fx.cli import main
    main(["--help"])
assert "torch" not in sys.modules
print(json.dumps({"mbs-fx --help": time.process_time()}))
"""


def once() -> dict[str, Any]:
    """Two fresh processes, which find byte code as after an installation, or leave it for the next."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    found: dict[str, Any] = {}
    for code in (TIMED, HELP):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        found |= json.loads(run.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    once()  # byte code and the file cache
    runs = [once() for _ in tqdm(range(args.runs), disable=None)]
    rows = [
        (name, *(f(run[name] for run in runs) for f in (min, statistics.median, max)), aim)
        for name, aim in AIMS.items()
    ]
    print(tabulate(rows, headers=("", "min s", "median s", "max s", "aim s"), floatfmt=".3f"))
    print(f"packages that mbs_fx adds: {', '.join(runs[0]['added'])}")


if __name__ == "__main__":
    main()

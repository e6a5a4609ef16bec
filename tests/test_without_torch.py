"""Results and planning are plain values: they import and run where torch is not installed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import torch

import mbs_fx
from mbs_fx.sample import resnet

ROOT = Path(mbs_fx.__file__).parent

ALONE = """
import importlib, pickle, sys, types
from pathlib import Path

sys.modules["torch"] = None  # "import torch" now fails
root = Path(sys.argv[1])
package = types.ModuleType("mbs_fx")  # the package without its __init__, which imports everything
package.__path__ = [str(root)]
sys.modules["mbs_fx"] = package
for folder in ("results", "planning"):
    for path in sorted((root / folder).glob("*.py")):
        importlib.import_module(f"mbs_fx.{folder}.{path.stem}")

analysis = pickle.loads(Path(sys.argv[2]).read_bytes())
plan = sys.modules["mbs_fx.planning.plan"].plan
print(plan(analysis, max_params="60%").to_json())
"""


def test_planning_runs_without_torch(tmp_path: Path) -> None:
    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(resnet(20)), (1, 3, 32, 32))
    held = tmp_path / "analysis"
    held.write_bytes(pickle.dumps(analysis))
    run = subprocess.run([sys.executable, "-c", ALONE, str(ROOT), str(held)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert mbs_fx.Plan.from_json(run.stdout) == mbs_fx.plan(analysis, max_params="60%")

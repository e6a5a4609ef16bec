"""mbs_fx: shrink any CNN, macroblock by macroblock (MBS as passes over torch.fx)."""

from mbs_fx.analysis import Analysis
from mbs_fx.analyzing import analyze
from mbs_fx.carrying import carry_optimizer
from mbs_fx.density import measure
from mbs_fx.density_result import Density
from mbs_fx.errors import MBSError
from mbs_fx.plan_result import Plan
from mbs_fx.planning import plan
from mbs_fx.reducing import reduce
from mbs_fx.rewriting import rewrite
from mbs_fx.rules import register as register_rule
from mbs_fx.saving import load, save
from mbs_fx.tracing import trace

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Density",
    "MBSError",
    "Plan",
    "analyze",
    "carry_optimizer",
    "load",
    "measure",
    "plan",
    "reduce",
    "register_rule",
    "rewrite",
    "save",
    "trace",
]

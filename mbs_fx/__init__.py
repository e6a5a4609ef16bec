"""mbs_fx: shrink any CNN, macroblock by macroblock (MBS as passes over torch.fx).

Every public name is imported when it is first used: ``import mbs_fx`` does not import torch.
"""

from typing import TYPE_CHECKING, Any

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from mbs_fx.benchmarking.bench import bench
    from mbs_fx.density.measure import measure
    from mbs_fx.exporting.export import export_python
    from mbs_fx.folder import Preparation
    from mbs_fx.macroblocks.analyze import analyze
    from mbs_fx.operations.register import register_operation
    from mbs_fx.pictures.draw import draw
    from mbs_fx.pictures.export import to_networkx
    from mbs_fx.pictures.plots import plot
    from mbs_fx.pictures.report import write_report
    from mbs_fx.planning.plan import plan
    from mbs_fx.planning.sweep import sweep
    from mbs_fx.reconstruction.choice import choose_channels
    from mbs_fx.reconstruction.reconstruct import reconstruct
    from mbs_fx.reducing import reduce
    from mbs_fx.reducing_in_steps import reduce_in_steps
    from mbs_fx.results.analysis import Analysis
    from mbs_fx.results.density import Density
    from mbs_fx.results.plan import Plan
    from mbs_fx.results.reconstruction import Reconstruction
    from mbs_fx.results.steps import Steps
    from mbs_fx.results.sweep import Sweep
    from mbs_fx.rewriting.carried_plan import plan_of
    from mbs_fx.rewriting.latency import latency_of
    from mbs_fx.rewriting.optimizer import carry_optimizer
    from mbs_fx.rewriting.rewrite import rewrite
    from mbs_fx.rewriting.saving import load, save
    from mbs_fx.tracing.given_forward import with_forward
    from mbs_fx.tracing.trace import trace
    from mbs_fx.training.accuracy import accuracy
    from mbs_fx.training.recipe import Recipe
    from mbs_fx.training.retrain import retrain

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Density",
    "MBSError",
    "Plan",
    "Preparation",
    "Recipe",
    "Reconstruction",
    "Steps",
    "Sweep",
    "accuracy",
    "analyze",
    "bench",
    "carry_optimizer",
    "choose_channels",
    "draw",
    "export_python",
    "latency_of",
    "load",
    "measure",
    "plan",
    "plan_of",
    "plot",
    "reconstruct",
    "reduce",
    "reduce_in_steps",
    "register_operation",
    "retrain",
    "rewrite",
    "save",
    "sweep",
    "to_networkx",
    "trace",
    "with_forward",
    "write_report",
]

_HOMES = {
    "bench": "benchmarking.bench",
    "export_python": "exporting.export",
    "Analysis": "results.analysis",
    "Density": "results.density",
    "Plan": "results.plan",
    "Preparation": "folder",
    "Recipe": "training.recipe",
    "Reconstruction": "results.reconstruction",
    "reconstruct": "reconstruction.reconstruct",
    "Steps": "results.steps",
    "Sweep": "results.sweep",
    "accuracy": "training.accuracy",
    "analyze": "macroblocks.analyze",
    "carry_optimizer": "rewriting.optimizer",
    "choose_channels": "reconstruction.choice",
    "draw": "pictures.draw",
    "latency_of": "rewriting.latency",
    "load": "rewriting.saving",
    "measure": "density.measure",
    "plan": "planning.plan",
    "plan_of": "rewriting.carried_plan",
    "plot": "pictures.plots",
    "reduce": "reducing",
    "reduce_in_steps": "reducing_in_steps",
    "register_operation": "operations.register",
    "retrain": "training.retrain",
    "rewrite": "rewriting.rewrite",
    "save": "rewriting.saving",
    "sweep": "planning.sweep",
    "to_networkx": "pictures.export",
    "trace": "tracing.trace",
    "with_forward": "tracing.given_forward",
    "write_report": "pictures.report",
}
"""Public name to the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"mbs_fx.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What completion offers: the public names, also those that are not imported yet."""
    return list(__all__)

"""A model whose convolutional part is run by a function, where its own ``forward`` decides by values.

Semantics
- A detector chooses boxes by their scores, so no graph is its whole forward.  What is convolutional in it is: a
  function of the model and a tensor calls it, and stands for ``forward`` while the model is traced and rewritten.
- The model that comes of it shares everything with the original, also the paths of its layers.  What is made of it
  and given back is of the original's class, with the original's forward.
- Layers that the function does not run keep their widths, and a note names them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any, TypeVar

from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.tracing.leaves import is_layer

Model = TypeVar("Model", bound=nn.Module)

_WHOLE = "_mbs_whole"


def with_forward(model: Model, forward: Callable[..., Any]) -> Model:
    """The model as `reduce`, `rewrite` and `load` take it where its own forward cannot be traced.

    What they give back has the class and the forward of ``model``.

    Args:
        model: any module; not changed.  The one that is returned shares its layers.
        forward: called as ``forward(model, *inputs)``.  It returns everything that the rest of the model reads, so
            that those widths stay.

    Raises:
        MBSError: ``model`` is no module, ``forward`` is no function, or the model's forward was replaced before.

    """
    if not isinstance(model, nn.Module) or not isinstance(forward, FunctionType):
        raise MBSError(
            f"with_forward takes a torch.nn.Module and a function of it, not a {type(model).__name__} and a "
            f"{type(forward).__name__}"
        )
    if "forward" in vars(model):
        raise MBSError(f"the forward of {type(model).__name__} was replaced: put it into the class")
    kind = vars(type(model)).get(_WHOLE, type(model))
    members = {"forward": forward, _WHOLE: kind, "__module__": kind.__module__}
    return _as(model, type(kind)(kind.__name__, (kind,), members))


def whole(model: Model) -> Model:
    """The model with its own forward again."""
    kind = vars(type(model)).get(_WHOLE)
    return model if kind is None else _as(model, kind)


def has_given_forward(model: nn.Module) -> bool:
    """Whether a function stands for the model's forward."""
    return _WHOLE in vars(type(model))


def not_run(model: nn.Module, targets: Collection[str]) -> tuple[str, ...]:
    """The note on layers that a given forward leaves out."""
    if not has_given_forward(model):
        return ()
    left = [
        path
        for path, module in model.named_modules()
        if is_layer(type(module)) and path not in targets and any(True for _ in module.parameters(recurse=False))
    ]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return (f"not run by the forward that was given, so as they were: {', '.join(left[:3])}{more}",) if left else ()


def _as(model: nn.Module, kind: type[Any]) -> Any:
    """The same module, all that it holds shared, as one of another class."""
    found = object.__new__(kind)
    object.__setattr__(found, "__dict__", vars(model))
    return found

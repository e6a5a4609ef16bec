"""Custom autograd functions while tracing.

Semantics
- ``SomeFunction.apply(x)`` is followed into its ``forward``; the graph then has the operations of the
  forward pass, and torch derives its gradients from them.
- The custom ``backward`` is not part of the graph.  Every function met is named, so that `mbs_fx.trace` can
  say so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.autograd import Function


class Context:
    """The ``ctx`` of a forward pass whose backward pass will not come: takes everything, keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@contextmanager
def followed_functions(met: set[str], paused: Callable[[], bool]) -> Generator[None]:
    """Follow custom functions inside, unless ``paused``, and add their names to ``met``."""
    original = inspect.getattr_static(Function, "apply")

    def apply(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        if paused():
            return original.__get__(None, kind)(*args, **kwargs)
        met.add(kind.__name__)
        combined = kind.setup_context is Function.setup_context
        return kind.forward(Context(), *args, **kwargs) if combined else kind.forward(*args, **kwargs)

    with patch.object(Function, "apply", classmethod(apply)):
        yield


def notes_on(met: set[str]) -> tuple[str, ...]:
    """What to tell about the functions that were followed."""
    return tuple(
        f"the graph has the forward of the autograd function {name} and not its own backward" for name in sorted(met)
    )

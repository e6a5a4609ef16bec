"""Operations that a user adds: `register_operation`, and the two tables that it writes to.

Semantics
- What is not said about a kind is inherited: a subclass of ``nn.Conv2d`` is a convolution, ``torch.cumsum`` what the
  vocabulary says of it, and a function of somebody's own nothing, so that its channels keep their width.
- A registration is undone by its handle, or at the end of a ``with`` block.  Of two registrations of one kind the later
  counts for as long as it stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.operations.operation import Facet, Operation, ZeroRule
from mbs_fx.operations.resolve import of_function, of_module, registered, spelling, torchs_own

channels: Facet[Callable[..., Any]] = Facet()
"""Rules of the label pass (`mbs_fx.channels.call`)."""

geometry: Facet[Callable[..., Any]] = Facet()
"""Rules of the geometry pass (`mbs_fx.geometry.call`)."""

_changes = [0]


def changes() -> int:
    """How many registrations were made or undone: what was found out before is found out again."""
    return _changes[0]


class Registration:
    """The handle of `register_operation`; `undo`, or leaving a ``with`` block, takes the registration back."""

    def __init__(self, key: Any, operation: Operation) -> None:
        self._key, self._operation = key, operation

    def undo(self) -> None:
        """Take the registration back; a second time does nothing."""
        held = registered.get(self._key, [])
        if self._operation not in held:
            return
        held.remove(self._operation)
        if not held:
            del registered[self._key]
        for facet in (channels, geometry):
            facet.rules.pop(self._operation, None)
        _changes[0] += 1

    def __enter__(self) -> Registration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def register_operation(
    kind: Callable[..., Any] | type[nn.Module],
    *,
    channels: Callable[..., Any] | None = None,
    geometry: Callable[..., Any] | None = None,
    zeros: ZeroRule | None = None,
) -> Registration:
    """Teach the passes an operation: where its channels go, what it does to the map, whether it makes zeros.

    Args:
        kind: a function, or a module class (its subclasses included).
        channels: the rule of the label pass, `mbs_fx.channels.call.ChannelRule`; without one, channels that enter keep
            their width.  ``mbs_fx.channels.rules.elementwise.elementwise_rule`` serves what works element by element.
        geometry: the rule of the geometry pass, `mbs_fx.geometry.call.GeometryRule`; without one, the map is that of
            the largest input, and a note says where sizes change.
        zeros: ``"exact"`` for an activation with exact zeros, whose share is measured; ``"none"`` for one without;
            ``"passes"`` for what is no activation.

    Returns:
        A handle: ``register_operation(...).undo()``, or use it as a context manager.

    Raises:
        MBSError: ``kind`` is neither a function nor a module class, or a rule cannot be called.

    """
    is_class = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not callable(kind) or isinstance(kind, nn.Module) or (isinstance(kind, type) and not is_class):
        raise MBSError(f"register_operation: {kind!r} is neither a function nor a class of modules")
    for name, rule in (("channels", channels), ("geometry", geometry)):
        if rule is not None and not callable(rule):
            raise MBSError(
                f"register_operation: {name} is {rule!r}; give a function of the call, as docs/rules.md shows"
            )
    if zeros not in (None, "exact", "none", "passes") and not callable(zeros):
        raise MBSError(f'register_operation: zeros is {zeros!r}; give "exact", "none" or "passes"')
    base = of_module(kind) if isinstance(kind, type) else of_function(kind)
    operation = Operation(
        name=getattr(kind, "__name__", repr(kind)),
        parameters=base.parameters if base is not None else _parameters(kind),
        dims=base.dims if base is not None else None,
        elementwise=base is not None and base.elementwise,
        zeros=zeros or (base.zeros if base is not None else "passes"),
        base=base,
        added=True,
    )
    _attach(operation, channels, geometry)
    key = spelling(kind) if not isinstance(kind, type) and torchs_own(kind) else kind
    registered.setdefault(key, []).append(operation)
    _changes[0] += 1
    return Registration(key, operation)


def _attach(operation: Operation, labels: Callable[..., Any] | None, maps: Callable[..., Any] | None) -> None:
    for facet, rule in ((channels, labels), (geometry, maps)):
        if rule is not None:
            facet.rules[operation] = rule


def _parameters(kind: Any) -> tuple[tuple[str, ...], ...]:
    """The names of a function's parameters, or of those of a module's forward."""
    try:
        names = list(inspect.signature(kind.forward if isinstance(kind, type) else kind).parameters)
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    return tuple((name,) for name in (names[1:] if isinstance(kind, type) else names))

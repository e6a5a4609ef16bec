"""What an operation is, and the tables of rules that other passes attach to operations.

Semantics
- An `Operation` stands for all spellings of one thing: functions, methods, in-place forms, operators, aten overloads
  and module classes.  Two operations are the same only if they are the same object.
- A `Facet` is what one pass knows about operations: one rule per operation.  An operation without a rule of its own has
  that of the operation it is derived from, and an elementwise one the rule for all elementwise operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import nn

Zeros = Literal["exact", "none", "passes"]
"""What becomes of exact zeros.

``"exact"`` is an activation that makes them (ReLU), ``"none"`` an activation whose results practically never are zero
(SiLU), and ``"passes"`` everything else: no activation.
"""

ZeroRule = Zeros | Callable[[Any], Zeros]
"""`Zeros`, or a function of the `Call` where they depend on its arguments (a clamp at zero)."""


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation in all its spellings.

    ``parameters`` are in the order of the function, each with its alternative names; the last may collect several
    arguments and then starts with an asterisk.  ``dims`` is the number of spatial axes for operations that come in one
    form per dimension.  ``mixes``: each result sums over channels.  ``moves``: rearranges a tensor without computing.
    ``added`` by `register_operation`, on top of ``base``.
    """

    name: str
    parameters: tuple[tuple[str, ...], ...] = ()
    names: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    dims: int | None = None
    elementwise: bool = False
    zeros: ZeroRule = "passes"
    nonnegative: bool = False
    mixes: bool = False
    moves: bool = False
    base: Operation | None = None
    added: bool = False

    def position(self, name: str) -> int | None:
        """Where a parameter stands among the arguments of the function; None where it has no such parameter."""
        return next((i for i, names in enumerate(self.parameters) if name in names), None)

    def alternatives(self, name: str) -> tuple[str, ...]:
        """All names of a parameter, the given one first."""
        at = self.position(name)
        return (name,) if at is None else (name, *(other for other in self.parameters[at] if other != name))


Rule = TypeVar("Rule", bound=Callable[..., Any])


class Facet(Generic[Rule]):
    """The rules of one pass, by operation; used as a decorator, ``@channels(pool)``."""

    def __init__(self) -> None:
        self.rules: dict[Operation, Rule] = {}
        self.elementwise: Rule | None = None

    def __call__(self, *operations: Operation) -> Callable[[Rule], Rule]:
        """Decorator: the rule of these operations."""

        def attach(rule: Rule) -> Rule:
            for operation in operations:
                self.rules[operation] = rule
            return rule

        return attach

    def of(self, operation: Operation | None) -> Rule | None:
        """The rule of an operation; None where there is none."""
        if operation is None:
            return None
        found = self.rules.get(operation)
        if found is None and operation.base is not None:
            return self.of(operation.base)
        return self.elementwise if found is None and operation.elementwise else found

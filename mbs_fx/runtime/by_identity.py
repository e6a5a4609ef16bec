"""Values computed once for each object, where comparing or hashing the objects would cost more than computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ByIdentity(Generic[Key, Value]):
    """A table from objects to values, by identity.  Keeps the objects alive, so that no other takes their identity."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Key, Value]] = {}

    def get(self, key: Key, compute: Callable[[Key], Value]) -> Value:
        """The value of this very object; computed where it is asked for the first time."""
        known = self._held.get(id(key))
        if known is None:
            known = self._held[id(key)] = key, compute(key)
        return known[1]

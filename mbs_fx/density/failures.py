"""Errors while images are read, in one line: what failed, and where."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from mbs_fx.errors import MBSError

P = ParamSpec("P")
R = TypeVar("R")


def workers_watched(work: Callable[P, R]) -> Callable[P, R]:
    """Turns the death of a loader's worker into an `MBSError`.

    torch reports it by a signal, so that the error is raised wherever the program is by then, and a second one may
    be raised in a context manager's exit: this wraps the whole function.
    """

    @wraps(work)
    def watched(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except RuntimeError as error:
            if not is_death(error):
                raise
            raise MBSError(f"reading images failed: {error}") from error

    return watched


def is_death(error: Exception) -> bool:
    """Whether this says that a worker of a `DataLoader` died."""
    return str(error).startswith("DataLoader worker (pid")


def reading_failed(error: Exception, number: int, seen: int) -> MBSError:
    """One line: what this package said of an image, as it is; anything else with where it happened.

    An error of a loader's worker has the traceback of the worker as its text, and the error as the last line of it.
    """
    name = type(error).__name__
    said = next(reversed(str(error).strip().splitlines()), "") if "Original Traceback" in str(error) else str(error)
    said = said.partition(f"{name}: ")[2] or said
    if isinstance(error, MBSError):
        return MBSError(said)
    return MBSError(f"reading images failed at batch {number}, after {seen} images: {name}: {said}")

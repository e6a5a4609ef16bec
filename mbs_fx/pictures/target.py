"""Where a picture goes, found out before the work starts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mbs_fx.errors import MBSError


def target(path: str | Path, what: str, suffixes: Collection[str]) -> Path:
    """The path, if it ends as it should and its folder is there."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise MBSError(f"{path}: {what} is written as {', '.join(suffixes)}, and this ends in {path.suffix!r}")
    if not path.parent.is_dir():
        raise MBSError(f"{path}: cannot write there: there is no folder {path.parent}")
    return path

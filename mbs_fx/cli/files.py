"""Where a command writes, found out before the work starts."""

from __future__ import annotations

import os
from pathlib import Path

from mbs_fx.errors import MBSError


def outputs(out: Path | None, name: str, suffixes: tuple[str, ...]) -> tuple[Path, ...]:
    """A path for every suffix: ``out`` is a stem or a folder, ``name`` the stem where it gives none."""
    stem = out or Path(name)
    if stem.is_dir():
        stem /= name
    if stem.suffix in suffixes:
        stem = stem.with_suffix("")
    if not stem.parent.is_dir():
        raise MBSError(f"cannot write {stem}: there is no folder {stem.parent}; make it, or give another --out")
    if not os.access(stem.parent, os.W_OK):
        raise MBSError(f"cannot write {stem}: no permission in {stem.parent}; give another --out")
    return tuple(stem.parent / f"{stem.name}{suffix}" for suffix in suffixes)

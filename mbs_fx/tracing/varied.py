"""The example of a trace at other sizes.

Semantics
- The varied example has another batch size, and other lengths of its last two axes, the same for all inputs with axes
  of one length.  Small ones come first; a network that is made for one size runs at none of them.
- Values are those of the example, repeated or cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from mbs_fx.tracing.batch_size import batch_of
from mbs_fx.tracing.example import Example


def varied(example: Example) -> Iterator[Example]:
    """The example at other sizes and with another batch size, small sizes first; at last with its own sizes."""
    batch = batch_of(example)
    number = None if batch is None else (2 if batch == 1 or batch > 3 else batch + 1)
    lengths = sorted({size for t in example.tensors() if t.dim() > 2 for size in t.shape[2:] if size > 3})
    for change in SIZES if lengths else ():
        yield replace_sizes(example, batch, number, change)
    for images in dict.fromkeys((1, number) if number != 2 else (number,)) if number else ():
        yield replace_sizes(example, batch, images, lambda size, axis: size)


def _unit(size: int) -> int:
    return 1 << (max(size, 4) // 4).bit_length() - 1


def _smaller(size: int, axis: int) -> int:
    return (2 if axis == -1 else 3) * _unit(size)


def _little_smaller(size: int, axis: int) -> int:
    return size - _unit(size) if axis == -1 else size


def _larger(size: int, axis: int) -> int:
    return size + _unit(size) if axis == -2 else size


SIZES = (_smaller, _little_smaller, _larger)


def replace_sizes(
    example: Example, batch: int | None, number: int | None, change: Callable[[int, int], int]
) -> Example:
    """The example with ``number`` in place of ``batch`` images, and other lengths of the axes behind the second."""

    def resized(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() and batch is not None and number is not None and tensor.size(0) == batch:
            tensor = _at(tensor, 0, number)
        for axis in range(2, tensor.dim()):
            from_end = axis - tensor.dim()
            if tensor.size(axis) > 3 and from_end >= -2:
                tensor = _at(tensor, axis, change(tensor.size(axis), from_end))
        return tensor

    return example.map(resized)


def _at(tensor: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """A tensor of another length along an axis: repeated where it is too short."""
    old = tensor.size(axis)
    return tensor if old == length else tensor.index_select(axis, torch.arange(length, device=tensor.device) % old)


def with_sizes_of(example: Example, varied: Example) -> Example:
    """The example with the batch size of a varied one."""
    return replace_sizes(example, batch_of(example), batch_of(varied), lambda size, axis: size)

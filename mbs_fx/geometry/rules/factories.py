"""Making: operations that take the type or the size of a tensor, and nothing of its pixels."""

from __future__ import annotations

from mbs_fx.geometry.axes import Track, bare
from mbs_fx.geometry.call import GeometryCall
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import geometry


@geometry(v.TYPE_AS)
def first(call: GeometryCall) -> Track:
    """``type_as(x, other)``: of the other, only the type is read."""
    return call.input


@geometry(v.NEW_FACTORY)
def new_factory(call: GeometryCall) -> Track | None:
    """``x.new_zeros(size)``: a map only where it has the dimensions of one."""
    return None if len(call.shape) == len(call.input.dims) else bare(call.shape)


@geometry(v.FACTORY, v.FULL)
def factory(call: GeometryCall) -> None:
    """Nothing enters but sizes."""

"""Tracing with concrete shapes: ``forward`` runs on fake tensors, and every torch function is written down.

Semantics
- No proxies: the model's code sees tensors with real shapes, dtypes and devices but without numbers
  (`torch._subclasses.FakeTensorMode`), so everything that these decide is decided; what needs the numbers
  fails.
- A torch function called by the model's code becomes one node; what it calls in turn does not.
- Sizes stay expressions of the input (`mbs_fx.tracing.recorded_values`), so the graph serves other batch sizes.
- Parameters and buffers are ``get_attr`` nodes.  Tensors that the model keeps elsewhere are constants, and
  so is what is computed of constants alone.
- A leaf that cannot run on fake tensors gets the shapes of its output from a real run
  (`mbs_fx.tracing.leaf_outputs`).
- A device that the model's code took from a tensor is, in the graph, the device of the first input.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial, reduce
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from mbs_fx.runtime.torch_private import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    tree_leaves,
    tree_map_only,
)
from mbs_fx.tracing.assemble import assemble
from mbs_fx.tracing.autograd import recorded_functions
from mbs_fx.tracing.batch_size import SpecialisedError, batch_of, free_batch, one_more
from mbs_fx.tracing.caches import Caches, restore
from mbs_fx.tracing.check import copied, seeded
from mbs_fx.tracing.constant_values import READS, ConstantValues, has_tensor, is_constant
from mbs_fx.tracing.example import Argument, Example, arguments, place_and_dtype
from mbs_fx.tracing.leaf_outputs import ORIGINAL_CALL, LeafOutputs, Observations, form_of
from mbs_fx.tracing.leaves import Leaves, UntraceableError
from mbs_fx.tracing.recorded_values import Source, forgotten_afterwards, plainly, traced
from mbs_fx.tracing.regions import detach_regions, recorded_regions
from mbs_fx.tracing.spelling import is_in_place, is_property, name_of, spelling
from mbs_fx.tracing.symbolic import LeafTracer

FIXED_BATCH: Final = "the graph holds for batches of"
UNRECORDED: Final = frozenset({"_set_grad_enabled", "_assert"})


class Recorder(TorchFunctionMode):
    """Hands every torch function to the tracer."""

    def __init__(self, tracer: ConcreteTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.tracer.function(func, args, kwargs or {})


class ConcreteTracer(LeafTracer):
    """Knows for every tensor of the run the node that makes it."""

    def __init__(self, leaves: Leaves, observations: Observations) -> None:
        super().__init__(leaves)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.leaf_outputs = LeafOutputs(self.fake, observations)
        self.made: dict[int, tuple[torch.Tensor, Source]] = {}
        self.sizes: dict[tuple[Source, int], Any] = {}
        self.device: tuple[torch.device, Source] | None = None

    def record(self, model: nn.Module, inputs: Sequence[Argument], caches: Caches) -> None:
        """Run a fake copy of the model once; the copy carries the constants of the graph."""
        root = self.root = self._fake_copy(model)
        restore(root, caches)
        self.values = ConstantValues(model, root, self._node)
        buffers = dict(root.named_buffers(remove_duplicate=False))
        self.graph = fx.Graph(tracer_cls=LeafTracer)
        self.submodule_paths = {module: path for path, module in root.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{name}".removeprefix(".")
            for path, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
        values = [self._input(argument) for argument in inputs]
        named = {argument.name: value for argument, value in zip(inputs, values, strict=True) if argument.keyword}
        positional = [value for argument, value in zip(inputs, values, strict=True) if not argument.keyword]
        with recorded_regions(self), self._module_calls(), recorded_functions(self), Recorder(self):
            result = root.forward(*positional, **named)
        self.create_node("output", "output", (self.create_arg(result),), {})
        self.values.drop_unused(self.graph)
        kept = dict(root.named_buffers(remove_duplicate=False))
        for path, buffer in buffers.items():
            if kept.get(path) is not buffer:
                self.told[f"the graph does not keep what the model assigns to its buffer {path!r}"] = None

    def _fake_copy(self, model: nn.Module) -> nn.Module:
        memo: dict[int, Any] = {}
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            fake = memo[id(tensor)] = self._fake(tensor)
            self.made[id(fake)] = fake, Source("get_attr", path)
        return copied(model, memo)

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter or buffer without numbers; torch's own way takes ten times as long and knows every kind."""
        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
            return self.fake.from_tensor(tensor, static_shapes=True).requires_grad_(False)
        fake = form_of(tensor).fake(self.fake)
        fake._is_param = isinstance(tensor, nn.Parameter)  # type: ignore[attr-defined]
        return fake

    def _input(self, argument: Argument) -> Any:
        source = Source("placeholder", argument.name)
        source.__fx_create_arg__(self)
        if argument.is_constant:
            return argument.value
        value = tree_map_only(torch.Tensor, lambda t: self.fake.from_tensor(t.detach()), argument.value)
        if isinstance(value, torch.Tensor) and self.device is None:
            self.device = value.device, Source("call_function", getattr, (source, "device"))
        return self._track(value, source)

    @contextmanager
    def _module_calls(self) -> Generator[None]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.paused:
                return ORIGINAL_CALL(module, *args, **kwargs)
            return self.call_module(module, partial(ORIGINAL_CALL, module), args, kwargs)

        with patch.object(nn.Module, "__call__", call):
            yield

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Any, *more: Any, **named: Any) -> Any:
        """What `call_module` of torch.fx asks for when it meets a leaf."""
        module = self.root.get_submodule(target)
        with self.unrecorded():
            result = self.leaf_outputs.output(module, target, plainly(args), plainly(kwargs))
        return self._write(kind, target, args, kwargs, result, bool(getattr(module, "inplace", False)))

    @contextmanager
    def unrecorded(self) -> Generator[None]:
        """What runs inside leaves no trace in the graph."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a torch function by the model's code."""
        if self.paused or getattr(func, "__name__", "") in UNRECORDED:
            return func(*args, **kwargs)
        if is_constant(args, kwargs):
            with torch.no_grad():
                return func(*args, **kwargs)
        size = self._size(func, args, kwargs)
        if size is not None:
            return size
        try:
            with self.fake:
                result = func(*plainly(args), **plainly(kwargs))
        except DataDependentOutputException:
            with self.unrecorded():
                if getattr(func, "__name__", "") in READS:
                    return self.values.read(func, args, kwargs)
                args, kwargs = self.values.as_numbers((args, kwargs))
            with self.fake:
                result = func(*plainly(args), **plainly(kwargs))
        kind, target, spelled = spelling(func, args, kwargs)
        if target is not operator.setitem and not has_tensor(result):
            if result is None:
                raise NotImplementedError(f"{name_of(func)} returns nothing, so a graph cannot show what it does")
            return result
        return self._write(kind, target, spelled, kwargs, result, is_in_place(func, args, kwargs))

    def _size(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer to a question about sizes, None where ``func`` asks another one."""
        name = is_property(func) or getattr(func, "__name__", "")
        if name not in ("shape", "size", "numel", "nelement", "__len__"):
            return None
        tensor: torch.Tensor = args[0]
        source = self._source(tensor)
        with self.fake:
            sizes = [self._one_size(source, axis, size) for axis, size in enumerate(tensor.size())]
        if name in ("numel", "nelement"):
            return reduce(operator.mul, sizes, 1)
        if name == "__len__":
            return sizes[0]
        axis = (*args[1:], *kwargs.values())
        return torch.Size(sizes) if not axis or axis[0] is None else sizes[axis[0]]

    def _one_size(self, source: Source, axis: int, size: int) -> Any:
        if (source, axis) not in self.sizes:
            self.sizes[source, axis] = traced(size, Source("call_method", "size", (source, axis)))
        return self.sizes[source, axis]

    def _write(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Any, result: Any, in_place: bool) -> Any:
        written, named = self.create_arg(args), self.create_arg(kwargs)
        assert isinstance(written, tuple)
        assert isinstance(named, dict)
        node = self.create_node(kind, target, written, named)
        given: set[int] = set() if in_place else set(map(id, tree_leaves((args, kwargs))))
        if in_place and not torch.is_grad_enabled() and id(result) in self.made:
            return result
        return self._track(result, Source(kind, target, node=node), given)

    def _track(self, value: Any, source: Source, given: Container[int] = ()) -> Any:
        """Remember which node makes each tensor in ``value``.

        A function that returns what it was given, unchanged, returns another object here: the argument keeps
        its own node.  (Dropout in evaluation mode does so, and it is not the identity in training.)
        """
        if isinstance(value, torch.Tensor):
            if id(value) in given:
                with self.unrecorded(), self.fake:
                    value = value.view(value.shape)
            self.made[id(value)] = value, source
        elif isinstance(value, (tuple, list)):
            for index, part in enumerate(value):
                self._track(part, _part(operator.getitem, source, index))
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self._track(part, _part(operator.getitem, source, key))
        elif is_dataclass(value):
            for field in fields(value):
                self._track(getattr(value, field.name), _part(getattr, source, field.name))
        return value

    def _source(self, tensor: torch.Tensor) -> Source:
        if id(tensor) not in self.made:
            raise NotImplementedError("a tensor comes from code that torch functions do not show (TorchScript, C++)")
        return self.made[id(tensor)][1]

    def _node(self, tensor: torch.Tensor) -> fx.Node | None:
        return self._source(tensor).__fx_create_arg__(self) if id(tensor) in self.made else None

    def create_arg(self, a: Any) -> Any:
        """Nodes for tensors, sizes and devices; the rest as torch.fx does it."""
        if isinstance(a, torch.Tensor) and (id(a) in self.made or isinstance(a, FakeTensor)):
            return self._source(a).__fx_create_arg__(self)
        if isinstance(a, torch.Size):
            return tuple(self.create_arg(size) for size in a)
        if isinstance(a, torch.device) and self.device is not None and a == self.device[0]:
            return self.device[1].__fx_create_arg__(self)
        return super().create_arg(a)


def _part(getter: Any, whole: Source, key: Any) -> Source:
    return Source("call_function", getter, (whole, key))


def trace_concretely(
    model: nn.Module, example: Example, leaves: Leaves, caches: Caches = (), any_batch: bool = True
) -> fx.GraphModule:
    """Trace at the example's shapes and, for ``any_batch``, with one more image, to let the batch size vary."""
    tracer = _record(model, example, leaves, caches)
    batch = batch_of(example)
    if batch is not None and any_batch:
        try:
            twin = _record(model, one_more(example, batch), leaves, caches)
            free_batch(tracer.graph, twin.graph, batch)
            _require_same_constants(tracer, twin)
        except (UntraceableError, SpecialisedError) as error:
            tracer.told[f"{FIXED_BATCH} {batch}: with {batch + 1}, {error}"] = None
    detach_regions(tracer.graph, tracer.root, tracer.without_gradient)
    gm = assemble(model, tracer.root, tracer.graph)
    gm.meta["mbs_leaves"] = leaves.met(tracer.graph, model)
    if tracer.values.parameters:
        read = ", ".join(tracer.values.parameters)
        tracer.told[f"the graph holds for the values that {read} have now, which the model reads as numbers"] = None
    gm.meta["mbs_notes"] = tuple(tracer.told)
    gm.meta["mbs_read"] = tracer.values.parameters
    gm.meta["mbs_followed"] = tuple(sorted(tracer.followed))
    return gm


def _require_same_constants(tracer: ConcreteTracer, twin: ConcreteTracer) -> None:
    for name in tracer.tensor_attrs.values():
        mine, other = (operator.attrgetter(name)(t.root) for t in (tracer, twin))
        if isinstance(mine, torch.Tensor) and mine.shape != other.shape:
            raise SpecialisedError(f"the constant {name} of shape {mine.shape} becomes one of {other.shape}")


def _record(model: nn.Module, example: Example, leaves: Leaves, caches: Caches) -> ConcreteTracer:
    tracer = ConcreteTracer(leaves, Observations(model, example, leaves))
    try:
        with seeded(place_and_dtype(model)[0]), forgotten_afterwards():
            tracer.record(model, arguments(model, example), caches)
    except Exception as error:
        raise UntraceableError(tracer.note("", error), bool(tracer.followed)) from error
    return tracer

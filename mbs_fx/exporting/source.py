"""The text of the file: imports, classes, ``load``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mbs_fx.exporting.blocks import Class
from mbs_fx.exporting.calls import MARK, REQUIRED, literal
from mbs_fx.exporting.layout import lines

_READ = '''def read(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file: length of the header, header (JSON), numbers."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, held in header.items():
        first, end = (start + offset for offset in held["data_offsets"])
        dtype = DTYPES[held["dtype"]]
        numbers = torch.frombuffer(bytearray(data[first:end]), dtype=dtype)
        tensors[name] = numbers.reshape(held["shape"])
    return tensors'''
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip


def source(classes: Sequence[Class], about: str, weights: str | None, state: Mapping[str, Tensor]) -> str:
    """The whole file."""
    blocks = ["\n".join(class_lines(each)) for each in classes]
    body = "\n\n\n".join([*blocks, *_loading(classes[-1].name, weights, state)])
    return f'"""{about}"""\n\n{_imports(body)}\n\n\n{body}\n'


def class_lines(each: Class) -> Iterator[str]:
    """A class as lines."""
    yield f"class {each.name}(nn.Module):"
    signature = ["self", *(_argument(*argument) for argument in each.arguments)]
    yield from lines(f"def __init__({', '.join(signature)}) -> None:", 4)
    yield from lines("super().__init__()", 8)
    for name in each.kept:
        yield from lines(f"self.{name} = {name}", 8)
    for name, call in each.children:
        text = f"self.{name} = {call}" if name.isidentifier() else f'self.add_module("{name}", {call})'
        yield from lines(text, 8)
    for tied, to in each.ties:
        yield from lines(f"{tied} = {to}", 8)
    if each.body is None:
        return
    yield ""
    yield from lines(f"def forward({', '.join(['self', *each.body.inputs])}) -> {each.body.given}:", 4)
    numbers = iter(each.numbers)
    for line in each.body.lines:
        yield from lines(re.sub(MARK, lambda _: next(numbers), line), 8)


def _argument(name: str, kind: str, default: Any) -> str:
    return f"{name}: {kind}" if default is REQUIRED else f"{name}: {kind} = {literal(default)}"


def _loading(name: str, weights: str | None, state: Mapping[str, Tensor]) -> Iterator[str]:
    """``load`` and what it needs."""
    floats = {tensor.dtype for tensor in state.values() if tensor.dtype.is_floating_point}
    make = f"{name}()" if len(floats) != 1 or "torch.float32" in map(str, floats) else f"{name}().to({floats.pop()})"
    if weights is None:
        signature, reading = f"def load(state: dict[str, Tensor]) -> {name}:", "state"
    else:
        signature = f"def load(weights: str | Path = Path(__file__).with_name({literal(weights)})) -> {name}:"
        reading = 'torch.load(weights, map_location="cpu", weights_only=True)'
    if weights is not None and weights.endswith(".safetensors"):
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
        held = ", ".join(f'"{key}": torch.{kind}' for key, kind in _NAMES.items() if kind in kinds)
        yield "\n".join(lines(f"DTYPES = {{{held}}}", 0))
        yield _READ
        reading = "read(weights)"
    body = ('"""The network with its weights, in eval mode."""', f"model = {make}", f"model.load_state_dict({reading})")
    yield "\n".join([*lines(signature, 0), *(f"    {line}" for line in (*body, "return model.eval()"))])


def _imports(body: str) -> str:
    """The imports that the text needs, in the order of formatters."""
    plain = [f"import {name}" for name in ("json", "math", "operator") if re.search(rf"\b{name}\.", body)]
    if "OrderedDict(" in body:
        plain.append("from collections import OrderedDict")
    if "Path(" in body:
        plain.append("from pathlib import Path")
    if re.search(r"\bAny\b", body):
        plain.append("from typing import Any")
    torches = ["import torch"] if re.search(r"\btorch\.", body) else []
    if re.search(r"\bF\.", body):
        torches.append("import torch.nn.functional as F")
    modules = sorted({m.rpartition(".")[0] for m in re.findall(r"\btorchvision(?:\.\w+)+", body)})
    torches += [f"import {module}" for module in modules]
    torches.append("from torch import Tensor, nn" if re.search(r"\bTensor\b", body) else "from torch import nn")
    return "\n".join([*plain, *([""] if plain else []), *torches])

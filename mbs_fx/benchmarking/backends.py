"""A network as a runtime runs it: eager torch, ``torch.compile``, onnxruntime."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.errors import MBSError

Run = Callable[[], object]
BACKENDS = ("eager", "compile", "onnxruntime")


def check_backends(backends: Sequence[str], device: torch.device) -> None:
    """Raise `MBSError` for a runtime that is unknown, not installed, or not for this device."""
    for backend in backends:
        if backend not in BACKENDS:
            raise MBSError(f"backend {backend!r}: choose from {', '.join(BACKENDS)}")
        if backend != "onnxruntime":
            continue
        missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise MBSError(f"backend 'onnxruntime' needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        if device.type != "cpu":
            raise MBSError(f"backend 'onnxruntime' is timed on the CPU, not on {device}: leave it out, or device='cpu'")


def prepared(model: nn.Module, inputs: Sequence[Tensor], backend: str, threads: int) -> Run:
    """A call of the network on the inputs, without gradients."""
    if backend == "onnxruntime":
        return _in_onnxruntime(model, inputs, threads)
    network: Any = torch.compile(model, dynamic=False) if backend == "compile" else model

    def run() -> object:
        with torch.no_grad():
            return network(*inputs)

    return run


def _in_onnxruntime(model: nn.Module, inputs: Sequence[Tensor], threads: int) -> Run:
    import onnxruntime  # type: ignore[import-not-found]

    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(model, tuple(inputs), path, dynamo=True, external_data=False, verbose=False)
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {held.name: tensor.numpy() for held, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, given)

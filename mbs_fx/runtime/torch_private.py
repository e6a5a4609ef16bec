"""What is private in torch, under public names.  No other file imports it.

- Base classes of layers, which tell a kind of layer whatever its number of axes is.
- Fake tensors, and walking through nested containers of tensors.
- What graphs hold: operators of aten, assertions, regions of autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.amp.autocast_mode import _enter_autocast as enter_autocast
from torch.amp.autocast_mode import _exit_autocast as exit_autocast
from torch.fx.passes.shape_prop import _extract_tensor_metadata as extract_tensor_metadata
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = [
    "ASSERT",
    "FAKE_TENSOR_LOG",
    "BatchNorm",
    "ConvNd",
    "ConvTransposeNd",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "InstanceNorm",
    "OpOverload",
    "TorchDispatchMode",
    "enter_autocast",
    "exit_autocast",
    "extract_tensor_metadata",
    "prefix_store",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
]

ASSERT = torch._assert
"""The function that a graph calls for an assertion."""

FAKE_TENSOR_LOG = "torch._subclasses.fake_tensor"
"""The logger that repeats every error of a fake tensor."""


def prefix_store(prefix: str, store: Any) -> Any:
    """A part of a store for one process group; torch may be built without processes, hence the late import."""
    from torch.distributed.distributed_c10d import PrefixStore

    return PrefixStore(prefix, store)

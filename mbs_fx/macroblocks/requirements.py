"""What a graph must be for an analysis, and what to do where it is not."""

from __future__ import annotations

from torch.fx import GraphModule

from mbs_fx.errors import MBSError


def require_unquantised(gm: GraphModule) -> None:
    """Fake quantisation and observers have scales per channel, which belong to the widths that they were made for."""
    kinds = ("torch.ao.nn.", "torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer")
    found = next((path for path, module in gm.named_modules() if type(module).__module__.startswith(kinds)), None)
    if found is not None:
        raise MBSError(
            f"{found}: the network is prepared for quantisation; reduce it before prepare_qat, prepare or convert, and "
            "prepare the reduced network"
        )


def why_no_convolution(gm: GraphModule) -> str:
    """What a graph without a convolution is, and what to do."""
    if any(str(node.target).startswith("L_") and "parameters" in str(node.target) for node in gm.graph.nodes):
        return (
            "the graph's weights are inputs, as torch.compile hands graphs to its backends: trace the model itself, "
            "mbs_fx.trace(model, example)"
        )
    if any(isinstance(module, GraphModule) for module in gm.children()):
        return "the graph calls other graphs, as after split_module: make it one, mbs_fx.trace(graph, example)"
    return "the graph has no convolution: there is nothing for macroblock scaling to do"

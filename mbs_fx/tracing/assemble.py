"""From a graph that was recorded on a copy to a GraphModule that shares the model's own modules.

Semantics
- Modules, parameters and buffers are the model's, by reference, as torch.fx does it.
- Tensors that the trace made are attributes of the GraphModule, and no part of its state dict.
- Buffers that the model does not save are not saved by the GraphModule either.
"""

from __future__ import annotations

from torch import fx, nn

from mbs_fx.shapes.graph_attributes import shallow_copy


def assemble(model: nn.Module, twin: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A GraphModule of ``model`` for a graph traced on ``twin``, which has the constants of the trace."""
    # A shallow copy has the model's own modules, and takes the constants and autograd functions in its place.
    root = shallow_copy(model)
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for target in (str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")):
        if "." not in target and not hasattr(root, target):
            setattr(root, target, getattr(twin, target))
    graph.output_node().type = None  # the annotation of the function that was traced: no name in generated code
    graph.lint()
    gm = fx.GraphModule(root, graph, type(model).__name__)
    for target in targets - set(model.state_dict()):
        _leave_unsaved(gm, target)
    for module in gm.modules():
        if type(module) is nn.Module:
            module.training = model.training
    return gm


def _leave_unsaved(gm: fx.GraphModule, target: str) -> None:
    path, _, name = target.rpartition(".")
    holder = gm.get_submodule(path)
    tensor = dict(holder.named_buffers(recurse=False)).get(name)
    if tensor is not None:
        holder.register_buffer(name, tensor, persistent=False)

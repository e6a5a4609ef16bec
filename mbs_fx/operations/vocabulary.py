"""The vocabulary: every operation that has a rule of its own, once.

Semantics
- A name stands for the function, the method, the in-place form with an underscore and the aten operator of that name;
  ``Tensor.unfold`` is the method only.  A name with dots is a function of another library, by module and name, or an
  operator that it registered with torch, by namespace and name.
- Parameters are named in the order in which the function takes them.  Names joined by ``|`` are one parameter.
- Elementwise operations that torch marks so (`torch.Tag.pointwise`) need no entry: `mbs_fx.operations.resolve` makes
  one for each that is met.  Entries here are elementwise where they say so or where torch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mbs_fx.operations.operation import Operation, ZeroRule, Zeros
from mbs_fx.runtime.torch_private import BatchNorm, ConvNd, InstanceNorm

NAMES: dict[str, Operation] = {}
"""Operations by the name of a function, method or operator."""

METHODS: dict[str, Operation] = {}
"""Operations that are methods only, where the function of the same name is another operation."""

MODULES: dict[type[nn.Module], Operation] = {}
"""Operations by module class; a class without an entry is what its nearest base class is."""

CLASS_NAMES: dict[str, Operation] = {}
"""Operations by the name of a module class that need not be installed."""


def operation(
    names: str,
    *modules: type[nn.Module],
    parameters: str = "input other",
    dims: int | None = None,
    elementwise: bool | None = None,
    zeros: ZeroRule = "passes",
    nonnegative: bool = False,
    mixes: bool = False,
    moves: bool = False,
) -> Operation:
    """Enter one operation; ``names`` and ``parameters`` are separated by spaces, ``elementwise`` is what torch says."""
    spelled = tuple(names.split())
    name = spelled[0].rpartition(".")[2] if spelled else modules[0].__name__
    order = tuple(tuple(each.split("|")) for each in parameters.split())
    made = Operation(
        name=name,
        parameters=(("input", "self", "x", "tensor"), *order[1:]) if order[:1] == (("input",),) else order,
        names=spelled,
        modules=modules,
        dims=dims,
        elementwise=any(map(is_pointwise, spelled)) if elementwise is None else elementwise,
        zeros=zeros,
        nonnegative=nonnegative,
        mixes=mixes,
        moves=moves,
    )
    for each in spelled:
        table, key = (METHODS, each.removeprefix("Tensor.")) if each.startswith("Tensor.") else (NAMES, each)
        table[key] = made
    MODULES.update(dict.fromkeys(modules, made))
    return made


def is_pointwise(name: str) -> bool:
    """Whether torch says of a function that it works element by element."""
    packet: Any = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    overloads = packet.overloads() if hasattr(packet, "overloads") else ()
    return any(torch.Tag.pointwise in getattr(packet, each).tags for each in overloads)


def in_each_dimension(function: str, module: str, **options: Any) -> tuple[Operation, ...]:
    """Three operations that differ in the number of spatial axes; ``{}`` in a name stands for it."""
    return tuple(
        operation(
            function.format(dims) if function else "",
            *(getattr(nn, each.format(dims)) for each in module.split() if hasattr(nn, each.format(dims))),
            dims=dims,
            **options,
        )
        for dims in (1, 2, 3)
    )


def _at_zero(parameter: str, otherwise: Zeros) -> ZeroRule:
    """Exact zeros where an argument is zero."""
    return lambda call: "exact" if call.number(parameter) == 0 else otherwise


# Layers that mix channels.
CONV = in_each_dimension(
    "conv{}d", "Conv{}d", parameters="input weight bias stride padding dilation groups", mixes=True
)
CONV_TRANSPOSE = in_each_dimension(
    "conv_transpose{}d",
    "ConvTranspose{}d",
    parameters="input weight bias stride padding output_padding groups dilation",
    mixes=True,
)
DEFORMABLE_CONV = operation(
    "torchvision.deform_conv2d",
    parameters="input weight offset mask bias stride_h stride_w pad_h pad_w dil_h dil_w groups n_offset_grps use_mask",
    dims=2,
    mixes=True,
)
OTHER_CONV = operation("", ConvNd, mixes=True)
CONVOLUTIONS = (*CONV, *CONV_TRANSPOSE, DEFORMABLE_CONV, OTHER_CONV)
LINEAR = operation("linear", nn.Linear, parameters="input weight bias", mixes=True)
MATMUL = operation("matmul bmm mm", parameters="input other|mat2|tensor2", mixes=True)
EINSUM = operation("einsum", parameters="equation *operands", mixes=True)
ATTENTION = operation("scaled_dot_product_attention", parameters="query key value", mixes=True)
SELF_ATTENTION = operation("", nn.MultiheadAttention, parameters="query key value", mixes=True)

# Activations.
RELU = operation("relu", nn.ReLU, parameters="input inplace", zeros="exact", nonnegative=True)
RELU6 = operation("relu6", nn.ReLU6, parameters="input inplace", zeros="exact", nonnegative=True)
CLAMP = operation("clamp clip", parameters="input min max", zeros=_at_zero("min", "passes"), nonnegative=True)
CLAMP_MIN = operation("clamp_min", parameters="input min", zeros=_at_zero("min", "passes"), nonnegative=True)
HARDTANH = operation(
    "hardtanh",
    nn.Hardtanh,
    parameters="input min_val max_val inplace",
    zeros=lambda call: "exact" if call.number("min_val", -1.0) == 0 else "none",
    nonnegative=True,
)
THRESHOLD = operation(
    "threshold", nn.Threshold, parameters="input threshold value inplace", zeros=_at_zero("value", "none")
)
SHRINK = operation("softshrink", nn.Softshrink, parameters="input lambd", zeros="exact")
HARDSHRINK = operation("hardshrink", nn.Hardshrink, parameters="input lambd", zeros="exact")
for _names, _module in {
    "silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "sigmoid expit special_expit": nn.Sigmoid, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU, "rrelu": nn.RReLU,
    "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU, "mish": nn.Mish, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "logsigmoid log_sigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink,
}.items():  # fmt: skip
    operation(_names, _module, elementwise=True, zeros="none")
PRELU = operation("prelu", nn.PReLU, parameters="input weight", zeros="none")
GLU = operation("glu", nn.GLU, parameters="input dim", zeros="none")

# Element by element, where torch does not say so: aliases, operators, conversions, noise.
ADD = operation("add")
for _names in (
    "sub subtract", "mul multiply", "div divide true_divide truediv", "floor_divide floordiv", "remainder mod",
    "abs absolute", "neg negative", "bitwise_and and", "bitwise_or or", "bitwise_xor xor", "bitwise_not invert",
    "bitwise_left_shift lshift", "bitwise_right_shift rshift", "positive pos", "acos arccos", "acosh arccosh",
    "asin arcsin", "asinh arcsinh", "atan arctan", "atan2 arctan2", "atanh arctanh", "gt greater", "ge greater_equal",
    "lt less", "le less_equal", "ne not_equal", "trunc fix", "isclose", "isreal", "real", "contiguous", "detach",
    "requires_grad", "to", "type", "float", "half", "double", "bfloat16", "bool", "int", "long", "cuda", "cpu",
    "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "bernoulli", "copy", "fill",
    "zero", "expand_as",
):  # fmt: skip
    operation(_names, elementwise=True)
IDENTITY = operation("", nn.Identity, elementwise=True)
DROPOUT = operation(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout "
    "torchvision.ops.stochastic_depth.stochastic_depth timm.layers.drop.drop_path",
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    parameters="input p training inplace",
    elementwise=True,
)
TYPE_AS = operation("type_as")

# Windows and changes of scale.
MAX_POOL = in_each_dimension(
    "max_pool{0}d max_pool{0}d_with_indices",
    "MaxPool{}d",
    parameters="input kernel_size stride padding dilation ceil_mode",
)
AVG_POOL = in_each_dimension("avg_pool{}d", "AvgPool{}d", parameters="input kernel_size stride padding ceil_mode")
LP_POOL = in_each_dimension("lp_pool{}d", "LPPool{}d", parameters="input norm_type kernel_size stride ceil_mode")
ADAPTIVE_POOL = (
    *in_each_dimension("adaptive_avg_pool{}d", "AdaptiveAvgPool{}d", parameters="input output_size"),
    *in_each_dimension(
        "adaptive_max_pool{0}d adaptive_max_pool{0}d_with_indices",
        "AdaptiveMaxPool{}d",
        parameters="input output_size return_indices",
    ),
)
FRACTIONAL_POOL = tuple(
    operation(
        f"fractional_max_pool{dims}d fractional_max_pool{dims}d_with_indices",
        getattr(nn, f"FractionalMaxPool{dims}d"),
        parameters="input kernel_size output_size output_ratio return_indices",
        dims=dims,
    )
    for dims in (2, 3)
)
UNPOOL = in_each_dimension(
    "max_unpool{}d", "MaxUnpool{}d", parameters="input indices kernel_size stride padding output_size"
)
INTERPOLATE = operation(
    "interpolate",
    nn.Upsample,
    parameters="input size scale_factor mode align_corners recompute_scale_factor antialias",
)
GRID_SAMPLE = operation("grid_sample", parameters="input grid mode padding_mode align_corners")
PIXEL_SHUFFLE = operation("pixel_shuffle", nn.PixelShuffle, parameters="input upscale_factor")
PIXEL_UNSHUFFLE = operation("pixel_unshuffle", nn.PixelUnshuffle, parameters="input downscale_factor")
UNFOLD = operation("unfold im2col", nn.Unfold, parameters="input kernel_size dilation padding stride")
WINDOWS = operation("Tensor.unfold", parameters="input dimension size step")
FOLD = operation("fold col2im", nn.Fold, parameters="input output_size kernel_size dilation padding stride")

# Padding and growth.
PAD = operation("pad constant_pad_nd", parameters="input pad|padding mode value")
PADDING = tuple(
    made
    for kind in ("Constant", "Reflection", "Replication", "Circular")
    for made in in_each_dimension(
        f"{kind.lower()}_pad{{}}d" if kind in ("Reflection", "Replication") else "",
        f"{kind}Pad{{}}d",
        parameters="input padding",
    )
)
EXPAND = operation("expand broadcast_to", parameters="input *size|shape", moves=True)
REPEAT = operation("repeat tile", parameters="input *repeats|sizes|dims")
REPEAT_INTERLEAVE = operation("repeat_interleave", parameters="input repeats dim")
FACTORY = operation("zeros ones empty rand randn", parameters="*size")
FULL = operation("full", parameters="size fill_value")
NEW_FACTORY = operation("new_zeros new_ones new_full new_empty", parameters="input *size")

# Layout.
VIEW = operation("view reshape", parameters="input *size|shape", moves=True)
FLATTEN = operation("flatten ravel", nn.Flatten, parameters="input start_dim end_dim", moves=True)
UNFLATTEN = operation("unflatten", nn.Unflatten, parameters="input dim sizes|unflattened_size", moves=True)
SQUEEZE = operation("squeeze", parameters="input dim", moves=True)
UNSQUEEZE = operation("unsqueeze", parameters="input dim", moves=True)
VIEW_AS = operation("view_as reshape_as", moves=True)
PERMUTE = operation("permute", parameters="input *dims", moves=True)
TRANSPOSE = operation("transpose swapaxes swapdims", parameters="input dim0|axis0 dim1|axis1", moves=True)
REVERSED = operation("t", parameters="input", moves=True)
ADJOINT = operation("adjoint", parameters="input", moves=True)
MOVEDIM = operation("movedim moveaxis", parameters="input source destination", moves=True)
RESTRIDED = operation("resize resize_as as_strided set", moves=True)
ROLL = operation("roll", parameters="input shifts dims")
FLIP = operation("flip", parameters="input *dims")
CHANNEL_SHUFFLE = operation("channel_shuffle", nn.ChannelShuffle, parameters="input groups")

# Parts and wholes.
CAT = operation("cat concat concatenate", parameters="tensors dim|axis")
STACK = operation("stack", parameters="tensors dim")
SPLIT = operation(
    "split split_with_sizes unsafe_split", parameters="input split_size_or_sections|split_size|split_sizes dim"
)
CHUNK = operation("chunk unsafe_chunk", parameters="input chunks dim")
TENSOR_SPLIT = operation("tensor_split", parameters="input indices_or_sections|sections|indices dim")
UNBIND = operation("unbind", parameters="input dim")
GETITEM = operation("getitem", parameters="input index")
GETATTR = operation("getattr", parameters="input name")
NARROW = operation("narrow narrow_copy", parameters="input dim start length")
SELECT = operation("select", parameters="input dim index")
INDEX_SELECT = operation("index_select", parameters="input dim index")
MESHGRID = operation("meshgrid", parameters="*tensors indexing")

# Statistics.
BATCH_NORM = operation(
    "batch_norm",
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm),
    parameters="input running_mean running_var weight bias training",
)
INSTANCE_NORM = operation("instance_norm", InstanceNorm, parameters="input running_mean running_var weight bias")
LAYER_NORM = operation("layer_norm", nn.LayerNorm, parameters="input normalized_shape weight bias")
GROUP_NORM = operation("group_norm", nn.GroupNorm, parameters="input num_groups weight bias")
LOCAL_NORM = operation("local_response_norm", nn.LocalResponseNorm, parameters="input size")
NORMALIZE = operation("normalize", parameters="input p dim")
SOFTMAX = operation("softmax log_softmax", nn.Softmax, nn.LogSoftmax, parameters="input dim")
SOFTMAX2D = operation("", nn.Softmax2d)
GUMBEL_SOFTMAX = operation("gumbel_softmax", parameters="input tau hard eps dim")
REDUCTION = operation(
    "sum mean amax amin std var prod logsumexp var_mean std_mean any all", parameters="input dim|axis keepdim"
)
EXTREMUM = operation("max min", parameters="input dim|axis|other keepdim", elementwise=False)
NORM = operation("norm vector_norm linalg_vector_norm linalg_norm", parameters="input p|ord dim|axis keepdim")
ARGUMENT = operation("argmax argmin median", parameters="input dim|axis keepdim")
QUANTILE = operation("quantile", parameters="input q dim keepdim")
SCAN = operation("sort topk cumsum cumprod argsort", parameters="input dim|axis")

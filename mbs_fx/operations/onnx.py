"""Modules of graphs that onnx2torch makes of ONNX files, by class name, so that it need not be installed."""

from __future__ import annotations

from mbs_fx.operations.operation import Operation
from mbs_fx.operations.vocabulary import CLASS_NAMES


def _classes(names: str, elementwise: bool = False, mixes: bool = False) -> Operation:
    made = Operation(names.split()[0], elementwise=elementwise, mixes=mixes)
    CLASS_NAMES.update(dict.fromkeys(names.split(), made))
    return made


ELEMENTWISE = _classes(
    "OnnxErf OnnxHardSigmoid OnnxClip OnnxNeg OnnxPow OnnxSqrt OnnxReciprocal OnnxRound OnnxCopyIdentity "
    "OnnxDropoutDynamic OnnxFunction OnnxMinMax OnnxMean OnnxWhere OnnxCast",
    elementwise=True,
)
BINARY = _classes("OnnxBinaryMathOperation", elementwise=True)
SUM = _classes("OnnxSum", elementwise=True)
POOL = _classes("OnnxGlobalAveragePool OnnxGlobalAveragePoolWithKnownInputShape OnnxPadStatic OnnxResize")
CONCAT = _classes("OnnxConcat")
FLATTEN = _classes("OnnxFlatten OnnxSqueezeStaticAxes OnnxUnsqueezeStaticAxes")
RESHAPE = _classes("OnnxReshape")
TRANSPOSE = _classes("OnnxTranspose")
MATMUL = _classes("OnnxMatMul", mixes=True)

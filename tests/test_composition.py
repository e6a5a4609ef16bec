"""The passes among other people's: before and after what an engineer runs on a graph."""

import copy
import operator

import pytest
import torch
from proof import difference
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.passes.split_module import split_module

import mbs_fx
from mbs_fx.passes import Analyze, Measure, Scale
from mbs_fx.sample import images, trained

SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def gm():
    return symbolic_trace(trained())


@pytest.fixture(scope="module")
def plan(gm):
    return mbs_fx.plan(mbs_fx.analyze(gm, SHAPE), z=0.8)


@pytest.fixture(scope="module")
def small(gm, plan):
    return mbs_fx.rewrite(gm, plan)


@pytest.fixture(scope="module")
def x():
    return images()[:4]


def same(a, b, x, bound=1e-5):
    with torch.no_grad():
        return difference(a(x), b(x)) < bound


def test_pass_manager_runs_them_in_a_row(gm, plan, x):
    passes = PassManager([Analyze(SHAPE), Measure(images()[:64], confidence=None), Scale(z=0.8)])
    before, gm = gm, copy.deepcopy(gm)
    small = passes(gm).graph_module
    assert small.meta["mbs"].images == 64
    assert small.meta["mbs"].params[1] < small.meta["mbs"].params[0]
    assert same(gm, before, x, 1e-12)
    assert "macroblock 0, width 16" in gm.print_readable(print_output=False, additional_meta=["mbs"])


def test_a_pass_manager_can_reduce_without_measuring(gm, plan):
    ShapeProp(carried := copy.deepcopy(gm)).propagate(torch.zeros(SHAPE))
    small = PassManager([Scale(z=0.8)])(carried).graph_module
    assert small.meta["mbs"].widths == plan.widths


def test_errors_come_out_as_the_cause(gm):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - PassManager raises the bare class
        PassManager([Scale(z=-1.0)])(gm)
    assert isinstance(raised.value.__cause__, mbs_fx.MBSError)


def test_a_changed_graph_is_analyzed_again_and_its_density_refused(gm):
    annotated = PassManager([Analyze(SHAPE), Measure(images()[:16], confidence=None)])(copy.deepcopy(gm)).graph_module
    fused = fuse(annotated)
    fused.meta.update(annotated.meta)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        PassManager([Scale()])(fused)
    assert "another graph" in str(raised.value.__cause__)


def test_reduce_takes_what_the_graph_carries(gm):
    carried = PassManager([Analyze(SHAPE), Measure(images()[:32], confidence=None)])(copy.deepcopy(gm)).graph_module
    ShapeProp(carried).propagate(torch.zeros(SHAPE))
    assert mbs_fx.reduce(carried).meta["mbs"].images == 32


def test_shape_prop_makes_an_example_unnecessary(gm):
    carried = copy.deepcopy(gm)
    ShapeProp(carried).propagate(torch.zeros(SHAPE))
    assert mbs_fx.reduce(carried, z=0.8).meta["mbs"].input_shapes == (SHAPE,)


def test_batch_norm_folded_before_and_after(gm, plan, small, x):
    folded = fuse(gm)
    assert same(mbs_fx.rewrite(folded, mbs_fx.plan(mbs_fx.analyze(folded, SHAPE), betas={})), gm, x)
    assert mbs_fx.plan(mbs_fx.analyze(folded, SHAPE), z=0.8).widths == plan.widths
    assert same(fuse(small), small, x)


def test_dead_code_before_and_after(gm, plan, small, x):
    littered = copy.deepcopy(gm)
    node = next(iter(littered.graph.find_nodes(op="call_module")))
    with littered.graph.inserting_after(node):
        littered.graph.call_function(operator.mul, (node, 2))
    littered.recompile()
    assert mbs_fx.plan(mbs_fx.analyze(littered, SHAPE), z=0.8).widths == plan.widths
    clean = copy.deepcopy(small)
    clean.graph.eliminate_dead_code()
    clean.recompile()
    assert same(clean, small, x)


def test_traced_again(small, x):
    again = symbolic_trace(small)
    assert same(again, small, x, 1e-12)
    smaller = mbs_fx.reduce(again, example=SHAPE, betas={8: 0.5})
    assert smaller.meta["mbs"].params[1] < small.meta["mbs"].params[1]


def test_split_after_and_traced_whole_before(gm, plan, small, x):
    order = {node: i for i, node in enumerate(small.graph.nodes)}
    parts = split_module(small, small, lambda node: int(order[node] > len(order) // 2))
    assert same(parts, small, x, 1e-12)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    parts = split_module(gm, gm, lambda node: int(order[node] > len(order) // 2))
    with pytest.raises(mbs_fx.MBSError, match="calls other graphs"):
        mbs_fx.analyze(parts, SHAPE)
    whole = mbs_fx.trace(parts, SHAPE)
    assert list(mbs_fx.plan(mbs_fx.analyze(whole, SHAPE), z=0.8).widths.values()) == list(plan.widths.values())


def test_compiled(small, x):
    assert same(torch.compile(small, backend="aot_eager"), small, x)


def test_exported(small, x):
    assert same(torch.export.export(small, (x,)).module(), small, x)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnx_runtime_gives_the_same_numbers(small, x, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    path = tmp_path / "small.onnx"
    torch.onnx.export(small, (x,), path, dynamo=True, external_data=False, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert difference(small(x), torch.from_numpy(out)) < 1e-4


@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_quantized_after_training(small, x):
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(small, (x,)).module(), quantizer)
    with torch.no_grad():
        prepared(x)
        quantized = convert_pt2e(prepared)(x)
        assert (quantized - small(x)).norm() < 0.2 * small(x).norm()


def test_trains_under_a_wrapper(small, x):
    model = nn.Sequential(copy.deepcopy(small).train())
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())

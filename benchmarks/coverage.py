"""Every CNN of torchvision and one or more of every timm family, reduced and checked.

    python benchmarks/coverage.py [--only REGEX] [--sides mbs] [--again]           # docs/coverage.md
    python benchmarks/coverage.py --zoo [--only REGEX] [--sides mbs] [--again]     # docs/coverage-libraries.md

Each network runs in a process of its own with a time limit.  Torch-Pruning 1.6 (pruning ratio 0.25) runs beside it.
What is checked is in `proof.py`.  Results are kept as JSON lines, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import resource
import time
import warnings
from collections.abc import Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coverage_page import libraries, page
from zoo import ZOO


def build(name: str) -> Any:
    """A network with fresh weights in eval mode, by ``torchvision/name``, ``timm/name`` or its name in `zoo.py`."""
    import torch

    import mbs_fx

    torch.manual_seed(0)
    if name in ZOO:
        found = ZOO[name]
        net = found.build().eval()
        return net if found.forward is None else mbs_fx.with_forward(net, found.forward)
    library, entry = name.split("/", 1)
    if library == "timm":
        import timm

        return timm.create_model(entry, pretrained=False).eval()
    import torchvision

    extra: dict[str, Any] = {"weights": None}
    if ("resnet50" in entry and "fcn" in entry) or "deeplab" in entry or "lraspp" in entry or "fcn" in entry:
        extra["weights_backbone"] = None
    if entry in ("googlenet", "inception_v3"):
        extra["init_weights"] = False
    return torchvision.models.get_model(entry, **extra).eval()


def input_shape(name: str, net: Any) -> tuple[int, ...]:
    """The smallest sensible input: the native size where the network insists on one."""
    if name in ZOO:
        return ZOO[name].shape
    if name.startswith("timm/"):
        native = net.default_cfg["input_size"][-1]
        return (2, 3, 128, 128) if native > 128 and _accepts(net, 128) else (2, 3, native, native)
    if "inception" in name:
        return (2, 3, 139, 139)
    return (2, 3, 224, 224) if re.search("vgg|alexnet|vit|swin|maxvit", name) else (2, 3, 128, 128)


def _accepts(net: Any, size: int) -> bool:
    """Whether the network runs at this input size; position codes and windows fix some to their own."""
    import torch

    try:
        with torch.no_grad():
            copy.deepcopy(net)(torch.zeros(2, 3, size, size))  # eval mode may fill caches
    except Exception:
        return False
    return True


def check(name: str) -> dict[str, Any]:
    """All checks on one network; stops at the first that fails and says how."""
    import torch
    from proof import difference, is_exact, random_inputs, reloads, trains, widths_hold, zeroed

    import mbs_fx
    from mbs_fx.macroblocks.analyze import facts

    row: dict[str, Any] = {"network": name, "parameters": 0}
    stage = "build"
    try:
        net = build(name)
        row["parameters"] = sum(p.numel() for p in net.parameters())
        shape = input_shape(name, net)
        stage = "traced"
        gm = mbs_fx.trace(net, shape)
        row["tracing"] = gm.meta.get("mbs_tracing", "")
        row["traced"] = True
        stage = "reduced"
        start = time.perf_counter()
        analysis = mbs_fx.analyze(gm, shape)
        plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
        small = mbs_fx.rewrite(gm, plan)
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["reduction"] = round(plan.reduction, 4)
        row["planned"] = round(sum(plan.widths.values()) / sum(plan.before.values()), 3)
        row["kept"] = len([p for p in plan.kept if p in plan.widths])
        row["convs"] = len(plan.widths)
        row["segments"] = len({s.index for m in analysis.macroblocks for s in m.segments})
        row["reduced"] = plan.params[1] < plan.params[0]
        if not row["reduced"]:
            raise AssertionError("nothing could be reduced: " + "; ".join(dict.fromkeys(plan.kept.values())))
        row["z"] = _smallest_threshold(gm, analysis)
        stage = "widths"
        wrong = widths_hold(small, plan)
        if wrong:
            raise AssertionError(wrong)
        row["widths"] = True
        stage = "params"
        counted = sum(p.numel() for p in small.parameters())
        if counted != plan.params[1]:
            raise AssertionError(f"counted {counted}, predicted {plan.params[1]}")
        row["params"] = True
        stage = "identity"
        inputs = random_inputs(net, plan, torch.float32)
        one = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))
        with torch.no_grad():
            if difference(gm(*inputs), one(*inputs)) != 0:
                raise AssertionError("β = 1 changes the output")
        row["identity"] = True
        del one  # the largest networks fill the memory otherwise
        stage = "faithful"
        exact = is_exact(gm, plan)
        if exact or not row["segments"]:
            double = gm.double()
            narrow = mbs_fx.rewrite(double, plan)
            with torch.no_grad():
                inputs64 = tuple(i.double() for i in inputs)
                given, made = narrow(*inputs64), narrow.meta["mbs"]
                del narrow
                row["error"] = difference(zeroed(double, made)(*inputs64), given)
            gm.float()
            if exact and not row["error"] < 1e-4:
                raise AssertionError(f"zeroed original and reduced network differ by {row['error']:.1e}")
        if exact or row.get("error", 1) < 1e-9:  # what a note warns of need not happen
            row["faithful"] = True
        else:
            notes = facts(gm, plan.input_shapes, plan.opaque).flow.notes.values()
            row["faithful"] = "opaque" if row["segments"] else "; ".join(sorted({n.split(": ", 1)[1] for n in notes}))
        stage = "reload"
        forward = ZOO[name].forward if name in ZOO else None
        row["reload"] = reloads(lambda: build(name), small, inputs, forward)
        stage = "train"
        try:
            row["train"] = trains(small, inputs)
        except RuntimeError:  # code for evaluation need not have a backward pass; then the module is what trains
            row["train"] = trains(mbs_fx.rewrite(net, plan), inputs) and "module"
    except Exception as error:
        row["failed"] = f"{stage}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    row["memory"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def module(name: str) -> dict[str, Any]:
    """The plan applied to the module itself: it gives what the graph gives, and trains."""
    import torch
    from proof import difference, random_inputs, trains

    import mbs_fx

    row: dict[str, Any] = {"network": name}
    try:
        net, forward = build(name), ZOO[name].forward if name in ZOO else None
        gm = mbs_fx.trace(net, input_shape(name, net))
        analysis = mbs_fx.analyze(gm)
        plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
        small = mbs_fx.rewrite(net, plan)
        row["code"] = next((note for note in small.meta["mbs"].notes if "runs traced code" in note), "own")
        small = small if forward is None else mbs_fx.with_forward(small, forward)
        inputs = random_inputs(net, plan, torch.float32)
        with torch.no_grad():
            if difference(mbs_fx.rewrite(gm, plan)(*inputs), small(*inputs)) > 1e-5:
                raise AssertionError("the module's output is not the graph's")
        row["train"] = trains(small, inputs)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return row


def _smallest_threshold(gm: Any, analysis: Any) -> float | None:
    """Reduce by Algorithm 1 at the largest threshold of 2, 1, 1/2, 1/4 ... that changes something."""
    import mbs_fx

    for exponent in range(-1, 7):
        plan = mbs_fx.plan(analysis, z=2.0**-exponent)
        if plan.params[1] < plan.params[0]:
            small = mbs_fx.rewrite(gm, plan)
            if sum(p.numel() for p in small.parameters()) != plan.params[1]:
                raise AssertionError(f"at z = {2.0**-exponent} the parameters are not those predicted")
            return 2.0**-exponent
    return None


def peer(name: str) -> dict[str, Any]:
    """Torch-Pruning on the same network: pruned and runs, or how it fails."""
    import torch
    import torch_pruning as tp

    row: dict[str, Any] = {"network": name}
    try:
        net = build(name)
        inputs = torch.randn(input_shape(name, net))
        before = sum(p.numel() for p in net.parameters())
        heads = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
        start = time.perf_counter()
        pruner = tp.pruner.MagnitudePruner(
            net,
            inputs,
            importance=tp.importance.MagnitudeImportance(),
            pruning_ratio=0.25,
            ignored_layers=heads,
        )
        pruner.step()
        row["seconds"] = round(time.perf_counter() - start, 2)
        with torch.no_grad():
            net(inputs)
        if sum(p.numel() for p in net.parameters()) >= before:
            row["failed"] = "nothing pruned"
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return row


def networks(most: float) -> Iterator[str]:
    """Names of all networks: torchvision's CNNs, then the smallest of every timm family."""
    import torchvision

    skip = re.compile("vit_|swin|raft|rcnn|retinanet|ssd|keypoint|fcos|r3d|mc3|r2plus1d|s3d|mvit|quantized")
    yield from (f"torchvision/{name}" for name in torchvision.models.list_models() if not skip.search(name))
    families: dict[str, list[tuple[int, str]]] = {}
    for entry, count in _timm_sizes(most):
        module = _timm_file(entry)
        families.setdefault(f"{module}/{re.split(r'[_0-9]', entry)[0]}", []).append((count, entry))
    yield from (f"timm/{min(entries)[1]}" for entries in families.values())


def remembered(path: Path, most: float) -> list[str]:
    """The names, counted once and kept beside the log: building everything in timm takes minutes."""
    if not path.exists():
        path.write_text("\n".join(networks(most)))
    return path.read_text().split()


def _timm_file(entry: str) -> str:
    """The model file of timm that an entrypoint stands in."""
    import timm

    return timm.models.model_entrypoint(entry).__module__.rsplit(".", 1)[-1]


def _timm_sizes(most: float) -> Iterator[tuple[str, int]]:
    """Networks of timm with convolutions after the stem and fewer parameters than ``most``."""
    import timm
    import torch

    for entry in timm.list_models(pretrained=False):
        try:
            with torch.device("meta"):
                net = timm.create_model(entry, pretrained=False)
        except Exception:  # some entries cannot be built without files from a hub
            continue
        count = sum(p.numel() for p in net.parameters())
        convs = sum(isinstance(m, torch.nn.modules.conv._ConvNd) for m in net.modules())
        if convs > 2 and count < most:
            yield entry, count


def run_one(name: str, side: str, limit: int) -> dict[str, Any]:
    """One network in a process of its own, forked from this one, which has imported what all of them need."""
    context = multiprocessing.get_context("fork")
    found, told = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(told, name, side))
    process.start()
    told.close()
    try:
        return found.recv() if found.poll(limit) else {"network": name, "failed": f"no result within {limit} s"}
    except EOFError:
        process.join()
        return {"network": name, "failed": f"the process died ({process.exitcode})"}
    finally:
        process.kill()
        process.join()


def _import_for_all() -> None:
    """What every network needs takes longer to import than most networks take to check."""
    import torch

    import mbs_fx

    torch.set_num_threads(1)  # a process that has started threads cannot be forked
    for name in ("timm", "torchvision"):
        import_module(name)
    for name in mbs_fx.__all__:
        getattr(mbs_fx, name)


def _answer(told: Connection, name: str, side: str) -> None:
    warnings.simplefilter("ignore")
    told.send(SIDES[side](name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--zoo", action="store_true", help="the networks of other libraries (`zoo.py`)")
    parser.add_argument("--out", type=Path, help="docs/coverage.md, or docs/coverage-libraries.md with --zoo")
    parser.add_argument("--log", type=Path, help="coverage.jsonl, or coverage-libraries.jsonl with --zoo")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--most", type=float, default=75e6, help="largest number of parameters")
    parser.add_argument("--limit", type=int, default=300, help="seconds per network")
    parser.add_argument("--sides", default="mbs,peer", help="which of mbs, module and peer to run")
    parser.add_argument("--again", action="store_true", help="run those once more that failed")
    args = parser.parse_args()
    sides = args.sides.split(",")
    stem = "coverage-libraries" if args.zoo else "coverage"
    log, out = args.log or Path(f"{stem}.jsonl"), args.out or Path(f"docs/{stem}.md")
    done = read(log)
    _import_for_all()
    for name in ZOO if args.zoo else remembered(log.with_suffix(".names"), args.most):
        if not re.search(args.only, name):
            continue
        for side in sides:
            if (side, name) in done and not (args.again and "failed" in done[side, name]):
                continue
            row = done[side, name] = run_one(name, side, args.limit) | {"side": side}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(side, name, row.get("failed", "ok"), flush=True)
    done = {place: row for place, row in done.items() if not args.zoo or place[1] in ZOO}
    out.write_text(libraries(done, len(ZOO)) if args.zoo else page(done))


SIDES = {"mbs": check, "module": module, "peer": peer}


def read(log: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What an earlier run found, by side and network; of two lines on the same the later holds."""
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    return {(row["side"], row["network"]): row for row in rows}


if __name__ == "__main__":
    main()

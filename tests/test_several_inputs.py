"""Networks with several inputs, in every form: in order, by keyword, in lists and dicts, bytes, vectors first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from proof import difference, random_inputs, zeroed
from torch import Tensor, nn
from torch.nn import functional as F

import mbs_fx

COLOUR, DEPTH = torch.randn(2, 3, 16, 12), torch.randn(2, 1, 16, 12)


class Two(nn.Module):
    """Two stems whose maps are added."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.body, self.head = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Linear(12, 5)

    def both(self, colour: Tensor, depth: Tensor | None) -> Tensor:
        x = self.colour(colour) if depth is None else self.colour(colour) + self.depth(depth)
        return self.head(F.relu(self.body(F.relu(x))).mean((2, 3)))


class InOrder(Two):
    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        return self.both(colour, depth)


class InList(Two):
    def forward(self, views: list[Tensor]) -> Tensor:
        return self.both(views[0], views[1])


class InDict(Two):
    def forward(self, views: dict[str, Tensor]) -> Tensor:
        return self.both(views["colour"], views["depth"])


class ByKeyword(Two):
    def forward(self, *, colour: Tensor, depth: Tensor) -> Tensor:
        return self.both(colour, depth)


class Optional(Two):
    """What is by keyword has a default value, and so has what stands between."""

    def forward(self, colour: Tensor, scale: float | None = None, *, depth: Tensor | None = None) -> Tensor:
        return self.both(colour if scale is None else colour * scale, depth)


class Nested(Two):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.both(batch["maps"]["colour"], batch["more"][0])


FORMS = {
    "in order": (InOrder, (COLOUR, DEPTH)),
    "a list": (InList, ([COLOUR, DEPTH],)),
    "a list in a list": (InList, [[COLOUR, DEPTH]]),
    "a list by name": (InList, {"views": [COLOUR, DEPTH]}),
    "a tuple by name": (InList, {"views": (COLOUR, DEPTH)}),
    "a dict": (InDict, ({"colour": COLOUR, "depth": DEPTH},)),
    "a dict by name": (InDict, {"views": {"colour": COLOUR, "depth": DEPTH}}),
    "by keyword": (ByKeyword, {"colour": COLOUR, "depth": DEPTH}),
    "by optional keyword": (Optional, {"colour": COLOUR, "depth": DEPTH}),
    "nested": (Nested, {"batch": {"maps": {"colour": COLOUR}, "more": (DEPTH,)}}),
}


def called(model: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return model(**example) if isinstance(example, dict) else model(*example)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_trace_takes_goes_all_the_way(form: str, tmp_path: Any) -> None:
    kind, example = FORMS[form]
    torch.manual_seed(0)
    net = kind().eval()
    gm = mbs_fx.trace(net, example)
    known, given = mbs_fx.analyze(gm), mbs_fx.analyze(gm, example)
    assert known.input_shapes == given.input_shapes == ((2, 3, 16, 12), (2, 1, 16, 12))
    assert known.input_size == (16, 12)
    density = mbs_fx.measure(gm, [example], analysis=known)
    assert density.images == 2
    assert dict(mbs_fx.measure(gm, [example]).p) == dict(density.p)
    plan = mbs_fx.Plan.from_json(mbs_fx.plan(known, density, betas={(16, 12): 0.75, (8, 6): 0.75}).to_json())
    assert plan.widths == {"colour": 6, "depth": 6, "body": 9}
    small = mbs_fx.rewrite(gm, plan)
    module = mbs_fx.rewrite(net, small.meta["mbs"])
    assert difference(called(small, example), called(module, example)) < 1e-6
    # The original with zeros in place of what was removed.
    inputs = random_inputs(gm, small.meta["mbs"], torch.float32)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*inputs), small(*inputs)) < 1e-5
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(kind().eval(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(called(small, example), called(again, example))
    assert mbs_fx.reduce(net, [example], example=example).meta["mbs"].images == 2
    assert mbs_fx.latency_of(gm, repetitions=1, warmup=0)(plan) > 0


def test_a_batch_of_a_loader_may_be_the_dict_itself() -> None:
    views = [{"colour": c, "depth": d} for c, d in zip(COLOUR, DEPTH, strict=True)]
    gm = mbs_fx.trace(InDict().eval(), ({"colour": COLOUR, "depth": DEPTH},))
    loader = torch.utils.data.DataLoader(views, batch_size=2)
    assert mbs_fx.measure(gm, loader).images == 2
    assert mbs_fx.reduce(gm, loader).meta["mbs"].images == 2


class After(nn.Module):
    """Something that is no image enters, and is used, before the image does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.embed, self.words, self.text = nn.Linear(6, 8), nn.Embedding(10, 8), nn.Conv1d(5, 8, 3)

    def map(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)) * gate)


class VectorFirst(After):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.map(x, self.embed(t)[:, :, None, None])


class TokensFirst(After):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.map(x, self.words(t).mean(1)[:, :, None, None])


class TextFirst(After):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.map(x, self.text(t).mean(2)[:, :, None, None])


class MaskFirst(After):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.map(x * t.unsqueeze(1), torch.ones(()))


class SmallMaskFirst(After):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.map(x * F.interpolate(t, size=x.shape[-2:]), torch.ones(()))


FIRST = {
    VectorFirst: torch.randn(2, 6),
    TokensFirst: torch.zeros(2, 4, dtype=torch.int64),
    TextFirst: torch.randn(2, 5, 7),
    MaskFirst: torch.rand(2, 16, 12),
    SmallMaskFirst: torch.rand(2, 1, 4, 4),
}


@pytest.mark.parametrize("kind", FIRST)
def test_the_input_size_is_that_of_the_image(kind: type[After]) -> None:
    torch.manual_seed(0)
    example = (FIRST[kind], COLOUR)
    gm = mbs_fx.trace(kind().eval(), example)
    analysis = mbs_fx.analyze(gm)
    assert analysis.input_size == (16, 12)
    assert analysis.image == 1
    fields = {conv.name: conv.receptive_field for conv in analysis.convs}
    assert (fields["first"], fields["second"]) == ((3.0, 3.0), (5.0, 5.0))
    density = mbs_fx.measure(gm, [example])
    assert not any("there were images of" in note for note in density.notes)


class Blur(nn.Module):
    """A fixed kernel on every channel of every image at once, by groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = F.conv2d(x.reshape(1, n * c, h, w), torch.ones(n * c, 1, 3, 3), padding=1, groups=n * c)
        return self.a(x.reshape(n, c, h, w))


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_groups_may_keep_the_images_of_a_batch_apart(batch: int, channels: int) -> None:
    analysis = mbs_fx.analyze(mbs_fx.trace(Blur(channels).eval(), (batch, channels, 16, 12)))
    assert analysis.input_size == (16, 12)
    assert analysis.convs[0].receptive_field == (5.0, 5.0)


class Normalising(nn.Module):
    """Takes bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32) / 255 - 0.5
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def test_a_network_that_normalises_takes_bytes_everywhere() -> None:
    torch.manual_seed(0)
    net = Normalising().eval()
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    labelled = torch.utils.data.TensorDataset(images, torch.arange(8) % 4)
    gm = mbs_fx.trace(net, images[:2])
    density = mbs_fx.measure(gm, labelled)
    # The share of positive values after the first ReLU, counted by hand.
    with torch.no_grad():
        share = float((net.a(images / 255 - 0.5) > 0).float().mean())
    assert density.p["a"] == pytest.approx(share, abs=1e-6)
    small = mbs_fx.reduce(net, labelled, betas={(8, 8): 0.5})
    assert small.meta["mbs"].input_types == ("uint8",)
    done = mbs_fx.retrain(small, labelled, recipe=mbs_fx.Recipe(epochs=1, batch=4), progress=False)
    assert done.epochs[0].images == 8


def test_bytes_for_a_network_that_does_not_say_so_are_refused() -> None:
    gm = mbs_fx.trace(Normalising().eval(), (2, 3, 8, 8))
    with pytest.raises(mbs_fx.MBSError, match=r"torch.uint8.* trace it with such an example"):
        mbs_fx.measure(gm, torch.zeros(4, 3, 8, 8, dtype=torch.uint8))

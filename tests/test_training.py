"""`retrain`: what it does to a network, and what it refuses."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mbs_fx
from mbs_fx.training.losses import loss_of
from mbs_fx.training.recipe import optimizer_of, schedule_of

CLASSES = 4


def net(seed=0, width=6, classes=CLASSES):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(width, classes),
    )


def images(count=64, seed=0):
    """Classes that differ in their mean colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randn(count, 3, 8, 8, generator=generator) + 2 * labels.view(-1, 1, 1, 1) - 3
    return TensorDataset(pixels, labels)


def recipe(**changes):
    return mbs_fx.Recipe(**{"epochs": 3, "batch": 16, "lr": 0.05} | changes)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_says_so():
    model = net()
    result = mbs_fx.retrain(model, images(), images(seed=1), recipe(epochs=25))
    assert result.accuracy > 0.6
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert [e.epoch for e in result.epochs] == list(range(1, 26))
    assert not model.training
    assert "accuracy" in str(result)


def test_a_reduced_network_trains():
    gm = mbs_fx.trace(net(width=12).eval(), torch.zeros(2, 3, 8, 8))
    small = mbs_fx.rewrite(gm, mbs_fx.plan(mbs_fx.analyze(gm, (1, 3, 8, 8)), betas={0: 0.5}))
    assert mbs_fx.retrain(small, images(), images(), recipe(epochs=25), teacher=gm).accuracy > 0.6


def test_same_as_a_loop_written_out():
    """SGD on the same batches, without any of retrain's parts."""
    batches = list(DataLoader(images(), 16))
    ours, plain = net().eval(), net().eval()
    options = recipe(epochs=2, channels_last=False, schedule="steps", drops=(0.5,), precision="float32")
    ours[5].p = plain[5].p = 0.0
    mbs_fx.retrain(ours, batches, None, options)
    plain.train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for lr in (0.05, 0.005):
        optimizer.param_groups[0]["lr"] = lr
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    for ours_p, plain_p in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours_p, plain_p)


def test_paper_schedule():
    options = mbs_fx.Recipe(epochs=8)
    optimizer = optimizer_of(options, net().parameters())
    schedule = schedule_of(options, optimizer, steps=5)
    rates = []
    for _ in range(8 * 5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [0.1] * 20 + [0.01] * 10 + [0.001] * 10
    assert rates == pytest.approx(expected)
    assert optimizer.defaults["weight_decay"] == 1e-4
    assert optimizer.defaults["momentum"] == 0.9


def test_drops_are_shares_of_the_steps():
    """One epoch of four steps: 50 % and 75 % are within it."""
    options = mbs_fx.Recipe(epochs=1)
    optimizer = optimizer_of(options, net().parameters())
    schedule = schedule_of(options, optimizer, steps=4)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_distillation_by_its_formula():
    options = recipe(distill=0.3, temperature=2.0)
    logits, taught = torch.randn(5, 4), torch.randn(5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.7 * nn.functional.cross_entropy(logits, labels) + 0.3 * 4 * divergence
    torch.testing.assert_close(loss_of(options, logits, labels, taught), expected)


def test_without_labels_the_teacher_is_imitated_alone():
    options = recipe(distill=0.3, temperature=2.0)
    logits, taught = torch.randn(5, 4), torch.randn(5, 4)
    whole = loss_of(recipe(distill=1.0, temperature=2.0), logits, torch.zeros(5, dtype=torch.long), taught)
    torch.testing.assert_close(loss_of(options, logits, None, taught), whole)
    pixels = images().tensors[0]
    losses = []
    for data in (
        pixels,
        TensorDataset(pixels),
        DataLoader(pixels, 16, shuffle=True),
        [{"image": pixels, "of": "a"}] * 4,
    ):
        model = net()
        result = mbs_fx.retrain(model, data, images(seed=1), recipe(average=0.9), teacher=net(seed=3))
        losses.append(result.epochs[-1].loss)
        assert result.epochs[-1].loss < result.epochs[0].loss
    assert losses[0] == losses[1]


def test_reconstructed_weights_begin_with_a_smaller_rate(monkeypatch):
    pixels, gm = images().tensors[0], mbs_fx.trace(net(width=12).eval(), torch.zeros(2, 3, 8, 8))
    started = []

    def stop(made, *_arguments):
        started.append(made)
        raise KeyboardInterrupt

    monkeypatch.setattr("mbs_fx.training.retrain.optimizer_of", stop)
    for reconstruct in (None, False):
        small = mbs_fx.reduce(gm, pixels, betas={0: 0.5}, reconstruct=reconstruct)
        with pytest.raises(KeyboardInterrupt):
            mbs_fx.retrain(small, images())
    assert [made.lr for made in started] == [0.01, 0.1]


def test_teacher_stays_as_it_was():
    teacher = net(seed=3).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    result = mbs_fx.retrain(net(), images(), None, recipe(epochs=1), teacher=teacher)
    assert teacher.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert result.recipe.distill == 0.5


@pytest.mark.parametrize("changes", [{}, {"schedule": "one-cycle", "average": 0.9}], ids=["steps", "averaged"])
def test_resumed_run_ends_in_the_same_bits(tmp_path, changes):
    options = recipe(epochs=4, **changes)
    whole, halves = net(), net()
    first = mbs_fx.retrain(whole, images(), images(), options)
    stop_after(2, halves, options, tmp_path / "run.ckpt")
    continued = net(seed=9)
    second = mbs_fx.retrain(continued, images(), images(), options, checkpoint=tmp_path / "run.ckpt")
    assert same(whole, continued)
    assert [e.loss for e in first.epochs] == [e.loss for e in second.epochs]


class KilledError(Exception):
    """A kill."""


def stop_after(epochs, model, options, path):
    """A run that dies in its next epoch."""

    class Dying(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            if self.reads > len(self) * epochs + 5:
                raise KilledError
            return super().__getitem__(index)

    with pytest.raises(KilledError):
        mbs_fx.retrain(model, Dying(*images().tensors), images(), options, checkpoint=path)


def test_resumed_run_with_a_loader_that_draws_for_itself(tmp_path):
    def loader():
        return DataLoader(images(), 16, shuffle=True, generator=torch.Generator().manual_seed(5))

    class Dying(list):
        def set_epoch(self, epoch):
            if epoch == 2:
                raise KilledError

        def __iter__(self):
            return iter(self.loader)

    whole, continued = net(), net()
    mbs_fx.retrain(whole, loader(), None, recipe(epochs=2))
    dying = Dying(range(4))
    dying.loader = loader()
    dying.generator = dying.loader.generator
    with pytest.raises(KilledError):
        mbs_fx.retrain(net(), dying, None, recipe(epochs=2), checkpoint=tmp_path / "run.ckpt")
    mbs_fx.retrain(continued, loader(), None, recipe(epochs=2), checkpoint=tmp_path / "run.ckpt")
    assert same(whole, continued)


def test_seeds_differ_and_repeat_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    runs = [net(), net(), net()]
    for model, seed in zip(runs, (1, 1, 2), strict=True):
        torch.random.set_rng_state(state)
        mbs_fx.retrain(model, images(), images(), recipe(epochs=1, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_averaged_weights_are_what_is_left():
    """One step an epoch and a decay of one half: the mean of the weights after the first and the second step."""

    class Watched(list):
        def set_epoch(self, epoch):
            if epoch == 2:
                steps.append([p.detach().clone() for p in plain.parameters()])

    steps, plain, averaged = [], net(), net()
    batches = Watched(DataLoader(images(16), 16))
    mbs_fx.retrain(plain, batches, None, recipe(epochs=2))
    mbs_fx.retrain(averaged, list(batches), None, recipe(epochs=2, average=0.5))
    for first, second, mean in zip(steps[0], plain.parameters(), averaged.parameters(), strict=True):
        torch.testing.assert_close(mean, (first + second) / 2)


def test_log_is_json_lines(tmp_path):
    mbs_fx.retrain(net(), images(), images(), recipe(epochs=2), log=tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(0 <= line["accuracy"] <= 1 and line["images"] == 64 for line in lines)


def test_bfloat16_learns_with_float32_weights():
    model = net()
    result = mbs_fx.retrain(model, images(), images(), recipe(epochs=25, precision="bfloat16", label_smoothing=0.1))
    assert result.accuracy > 0.6
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_checkpoint_of_another_network_or_recipe(tmp_path):
    path = tmp_path / "run.ckpt"
    mbs_fx.retrain(net(), images(), None, recipe(), checkpoint=path)
    with pytest.raises(mbs_fx.MBSError, match=r"another network: 0.weight is \(6, 3, 3, 3\) there and \(5, 3, 3, 3\)"):
        mbs_fx.retrain(net(width=5), images(), None, recipe(), checkpoint=path)
    with pytest.raises(mbs_fx.MBSError, match=r"another recipe \(lr: 0.05 there, 0.1 here\)"):
        mbs_fx.retrain(net(), images(), None, recipe(lr=0.1), checkpoint=path)
    with pytest.raises(mbs_fx.MBSError, match="4 steps an epoch, here are 3"):
        mbs_fx.retrain(net(), images(48), None, recipe(), checkpoint=path)
    torch.save({"format": 1}, tmp_path / "other.ckpt")
    for content in (b"", b"not a checkpoint", (tmp_path / "other.ckpt").read_bytes(), path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(mbs_fx.MBSError, match="not a checkpoint"):
            mbs_fx.retrain(net(), images(), None, recipe(), checkpoint=path)


def test_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"

    class Poisoned(TensorDataset):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            image, label = super().__getitem__(index)
            return (image * math.nan if self.reads > 2 * len(self) else image), label

    with pytest.raises(
        mbs_fx.MBSError, match=r"epoch 3, step 4: the loss is nan \(the loss was .* in epoch 2\).*holds epoch 2"
    ):
        mbs_fx.retrain(net(), Poisoned(*images().tensors), None, recipe(epochs=4), checkpoint=path)
    resumed = mbs_fx.retrain(net(), images(), None, recipe(epochs=4), checkpoint=path)
    assert len(resumed.epochs) == 4
    assert all(math.isfinite(e.loss) for e in resumed.epochs)


def test_statistics_that_overflow_are_not_kept(tmp_path):
    """BatchNorm trains with the batch's statistics: the loss is fine, and what is left would not be."""
    pixels, labels = images().tensors
    data = TensorDataset(pixels * 1e25, labels)
    with pytest.raises(mbs_fx.MBSError, match=r"epoch 1, after the last step 1.running_var is not finite"):
        mbs_fx.retrain(net(), data, None, recipe(), checkpoint=tmp_path / "run.ckpt")
    assert not (tmp_path / "run.ckpt").exists()


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    stop_after(1, net(), recipe(), path)
    before = path.read_bytes()

    def full(_path, _data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(mbs_fx.MBSError, match="No space left on device"):
            mbs_fx.retrain(net(), images(), images(), recipe(), checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
    assert path.read_bytes() == before


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled, tmp_path):
    model, continued = net(), net(seed=9)
    options = recipe(epochs=25, compile=compiled)
    assert mbs_fx.retrain(model, images(), images(), options, device="cuda", teacher=net(1)).accuracy > 0.6
    assert next(model.parameters()).is_cuda
    mbs_fx.retrain(continued, images(), None, recipe(), device="cuda", checkpoint=tmp_path / "run.ckpt")
    assert len(mbs_fx.retrain(net(), images(), None, recipe(), checkpoint=tmp_path / "run.ckpt").epochs) == 3

"""Is the graph the model, on other inputs, with other parameters, in the backward pass, in the other mode?

Semantics
- First the example in the model's own mode.  Then everything else in one trial: the varied example, changed
  parameters, the other mode, gradients.  Where both agree, four forward passes have told all.
- Where the second trial differs, further ones tell which of the four it is: the mode is a note; a size or a batch
  size is a note, and the graph then refuses others; parameters and gradients make the graph wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from mbs_fx.errors import MBSError
from mbs_fx.tracing.batch_size import batch_of
from mbs_fx.tracing.caches import Caches, empty_caches
from mbs_fx.tracing.check import RunError, copied, disagreement
from mbs_fx.tracing.copies import Copies
from mbs_fx.tracing.example import Example
from mbs_fx.tracing.leaves import UntraceableError
from mbs_fx.tracing.trials import Outcome, Trial, run_graph, run_model
from mbs_fx.tracing.varied import varied, with_sizes_of

Retrace = Callable[..., fx.GraphModule]
"""Traces a model on an example once more; with ``any_batch=False`` the graph may hold for that batch size only."""


@dataclass(frozen=True)
class Verdict:
    """What the trials found: what is wrong with the graph, what it holds for, what to tell."""

    wrong: str = ""
    in_gradients: bool = False
    notes: tuple[str, ...] = ()
    fixed: Literal["", "sizes", "batch"] = ""
    left_behind: Caches = ()


class Verifier:
    """Compares graphs with one model; the model runs each trial once."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model = model
        self.example = example
        # The trial is kept, too, so that no other example takes its identity.
        self.outcomes: dict[tuple[int, bool | None, bool, bool], tuple[Outcome, Caches, Trial]] = {}
        self.runnable: dict[bool | None, Trial | str] = {}
        self.copies = Copies(model)
        try:
            self.expected = run_model(self.copies, Trial(example))[0]
        except RunError as error:
            raise MBSError(
                f"{type(model).__name__} itself fails on the example: {error}; check the example's shape, dtype and "
                "device"
            ) from error
        self.caches = empty_caches(model, self._agrees)
        if self.caches:
            self.copies = Copies(model, self.caches)

    @property
    def has_varied_batch(self) -> bool:
        """Whether the graph was compared with another number of images."""
        trials = (trial for trial in self.runnable.values() if isinstance(trial, Trial))
        return any(batch_of(trial.example) != batch_of(self.example) for trial in trials)

    def _agrees(self, caches: Caches) -> nn.Module | None:
        try:
            outcome, twin = run_model(Copies(self.model, caches), Trial(self.example))
        except RunError:
            return None
        return None if disagreement(self.expected.outputs, outcome.outputs) else twin.module

    def verdict(self, gm: fx.GraphModule, retrace: Retrace) -> Verdict:
        """What the trials of a graph show; ``retrace`` traces a copy of the model in another mode."""
        wrong = self._differs(gm, Trial(self.example), self.expected)[0]
        if wrong:
            return Verdict(f"the graph does not compute what the model computes, {wrong}")
        other = self._trial(gm, not self.model.training)
        if isinstance(other, str):
            mode = "evaluation" if self.model.training else "training"
            note = f"{mode} mode could not be checked, the model itself fails in it on the example: {other}"
            return self._in_own_mode(gm, (note,))
        differs = next(filter(None, self._differs(gm, other)), "")
        if not differs:
            return Verdict(notes=self._unchecked_gradients(other))
        verdict = self._in_own_mode(gm, ())
        if verdict.wrong:
            return verdict
        if verdict.fixed:
            sizes = self.example if verdict.fixed == "batch" else with_sizes_of(self.example, other.example)
            other = replace(other, example=sizes)
            differs = next(filter(None, self._differs(gm, other)), "")
        notes = self._notes_on_mode(gm, other, differs, retrace) if differs else ()
        return replace(verdict, notes=verdict.notes + notes)

    def _in_own_mode(self, gm: fx.GraphModule, notes: tuple[str, ...]) -> Verdict:
        trial = self._trial(gm, None)
        if isinstance(trial, str):
            return Verdict(notes=notes)
        outputs, gradients = self._differs(gm, trial)
        if gradients:
            return Verdict(f"the graph does not train as the model does, {gradients}", True)
        if not outputs:
            return Verdict(notes=notes + self._unchecked_gradients(trial))
        return self._cause(gm, trial, outputs, notes)

    def _cause(self, gm: fx.GraphModule, trial: Trial, outputs: str, notes: tuple[str, ...]) -> Verdict:
        """Which change of the trial the graph does not follow: that of the sizes, the batch or the parameters."""
        left = self._outcome(trial)[1]
        sizes = replace(trial, example=with_sizes_of(self.example, trial.example))
        batch = replace(trial, example=self.example)
        for change, fixed in (("sizes", sizes), ("batch", batch)):
            if fixed.example is trial.example or isinstance(self._tried(fixed), str):
                continue
            still, gradients = self._differs(gm, fixed)
            if gradients:
                return Verdict(f"the graph does not train as the model does, {gradients}", True)
            if not still and change == "sizes":
                return Verdict(notes=(*notes, self._on_sizes(outputs)), fixed="sizes", left_behind=left)
            if not still:
                return Verdict(notes=(*notes, self._on_batch(outputs)), fixed="batch", left_behind=left)
        return Verdict(f"the graph does not follow a change of the parameters, {outputs}")

    def _on_sizes(self, outputs: str) -> str:
        sizes = ", ".join(" × ".join(map(str, t.shape[2:])) for t in self.example.tensors() if t.dim() > 2)
        return f"the graph holds for inputs of {sizes} and refuses others: at another size, {outputs}"

    def _on_batch(self, outputs: str) -> str:
        number = batch_of(self.example)
        return f"the graph holds for batches of {number} and refuses others: with another number, {outputs}"

    def _notes_on_mode(self, gm: fx.GraphModule, trial: Trial, differs: str, retrace: Retrace) -> tuple[str, ...]:
        """Why the graph is not the model in the mode that was not traced."""
        training = bool(trial.training)
        mode = "training" if training else "evaluation"
        note = f"the graph is not the model in {mode} mode: {differs}"
        try:
            example = with_sizes_of(self.example, trial.example)
            traced = retrace(copied(self.model).train(training), example, any_batch=False)
            expected = replace(self._outcome(trial)[0], gradients=None)
            cause = self._differs(traced, trial, expected, as_model=True)[0]
        except UntraceableError as stop:
            return (f"{note}; the model cannot be traced in {mode} mode: {stop.failure.reason}",)
        except RunError as error:
            return (f"{mode} mode could not be checked, the model itself fails in it on the example: {error}",)
        if cause:
            return (f"{note}; a graph traced in {mode} mode is not either: {cause}",)
        return (
            f"{note}; tracing fixed the mode{_named(lost(self.model, gm, traced))}, and a graph traced in "
            f"{mode} mode agrees",
        )

    def _unchecked_gradients(self, trial: Trial) -> tuple[str, ...]:
        outcome = self._outcome(trial)[0]
        if outcome.gradients is not None or not outcome.reason:
            return ()
        return (f"gradients could not be checked, the model's own backward pass fails: {outcome.reason}",)

    def _trial(self, gm: fx.GraphModule, training: bool | None) -> Trial | str:
        """A varied trial, with the model's own parameters where the graph says that it holds for their values."""
        trial = self._varied(training)
        return replace(trial, changed=False) if isinstance(trial, Trial) and gm.meta.get("mbs_read") else trial

    def _varied(self, training: bool | None) -> Trial | str:
        """The first varied trial in this mode that the model runs, or how it fails on its own example."""
        if training not in self.runnable:
            tried: Trial | str = ""
            known = [trial.example for trial in self.runnable.values() if isinstance(trial, Trial)]
            for example in (*known, *varied(self.example), self.example):
                tried = self._tried(Trial(example, training, changed=True, gradients=True))
                if isinstance(tried, Trial):
                    break
            self.runnable[training] = tried
        return self.runnable[training]

    def _tried(self, trial: Trial) -> Trial | str:
        try:
            self._outcome(trial)
        except RunError as error:
            return str(error)
        return trial

    def _outcome(self, trial: Trial) -> tuple[Outcome, Caches, Trial]:
        key = id(trial.example), trial.training, trial.changed, trial.gradients
        if key not in self.outcomes:
            outcome, twin = run_model(self.copies, trial)
            self.outcomes[key] = outcome, twin.left, trial
        return self.outcomes[key]

    def _differs(
        self, gm: fx.GraphModule, trial: Trial, expected: Outcome | None = None, as_model: bool = False
    ) -> tuple[str, str]:
        try:
            return run_graph(gm, self.copies, trial, expected or self._outcome(trial)[0], as_model)
        except RunError as error:
            return f"it fails: {error}", ""


def lost(model: nn.Module, gm: fx.GraphModule, other: fx.GraphModule) -> list[str]:
    """What one mode's graph has and the other's does not: modules with a mode of their own, calls, arguments."""
    mine, others = ([_call(node) for node in graph.graph.nodes] for graph in (gm, other))
    calls = [call for call in mine if call not in others] + [call for call in others if call not in mine]
    own = [
        f"the train() of {type(module).__name__}"
        for module in model.modules()
        if not type(module).__module__.startswith("torch.nn.") and type(module).train is not nn.Module.train
    ]
    return list(dict.fromkeys([*own, *(name for name, _ in calls)]))


def _call(node: fx.Node) -> tuple[str, str]:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name, str([arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, (bool, float))])


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})" if names else ""

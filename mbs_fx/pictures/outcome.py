"""What became of a plan, where its network was tested or timed: the words of a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mbs_fx.results.plan import Plan
from mbs_fx.results.speed import Bench
from mbs_fx.results.tables import share_text


def cards(plans: Iterable[Plan], bench: Bench | None) -> Iterator[tuple[str, str]]:
    """Names and headings of the cards that have something to say."""
    if any(plan.accuracy for plan in plans):
        yield "accuracy", "accuracy"
    if bench is not None:
        timing = bench.timings[0]
        yield "time", f"time of a batch of {timing.batch}, {timing.backend} on {bench.device}"


def outcome_texts(plan: Plan, original: float | None, bench: Bench | None) -> dict[str, str]:
    """What the cards say of a plan; ``original`` is the accuracy of the original, ``bench`` of this plan."""
    texts = {"accuracy-change": "not tested", "accuracy-fewer": "", "time-change": "not timed", "time-fewer": ""}
    if plan.tested is not None:
        texts["accuracy-change"] = share_text(plan.tested)
        if original is not None:
            texts["accuracy-change"] = f"{share_text(original)} → {share_text(plan.tested)}"
            texts["accuracy-fewer"] = (
                f"{100 * (plan.tested - original):+.2f} points" if max(original, plan.tested) <= 1 else ""
            )
    if bench is not None:
        timing = bench.timings[0]
        texts["time-change"] = f"{timing.before.median:.3g} → {timing.after.median:.3g} ms"
        texts["time-fewer"] = f"{timing.ratio.median:.3g} times as fast"
    return texts


def outcome(plan: Plan, original: float | None, bench: Bench | None) -> str:
    """Sentences on accuracy and time; empty where neither is known."""
    said: list[str] = []
    if plan.tested is not None:
        before = "" if original is None else f", where the original has {share_text(original)}"
        said.append(f"Accuracy is {share_text(plan.tested)} ({list(plan.accuracy)[-1]}){before}.")
    if bench is not None:
        timing = bench.timings[0]
        what = "An image" if timing.batch == 1 else f"A batch of {timing.batch}"
        said.append(f"{what} takes {timing.after.median:.3g} ms in place of {timing.before.median:.3g}.")
    return " ".join(said)

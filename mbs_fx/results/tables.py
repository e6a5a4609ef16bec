"""Tables as text, HTML and Markdown, and sizes, ranges and lists as text.  Knows strings, numbers and rows only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tabulate import tabulate

Row = Sequence[str]

MOST_NOTES = 8
"""Notes that are printed below a table."""


def table(rows: Sequence[Row], headers: Row) -> str:
    """Rows under headers as text."""
    return tabulate(rows, headers, disable_numparse=True)


def table_html(rows: Sequence[Row], headers: Row = ()) -> str:
    """The same as HTML, for notebooks: aligned to the left as the text is, whatever the page's style says."""
    html = str(tabulate(rows, headers, tablefmt="html", disable_numparse=True))
    for cell in ("th", "td"):
        html = html.replace(f"<{cell}>", f'<{cell} style="text-align: left">')
    return html


def markdown(rows: Sequence[Row], headers: Row, below: Iterable[str] = ()) -> str:
    """The same as Markdown, with a list of the lines below it."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        [tabulate(cells, headers, tablefmt="github", disable_numparse=True), "", *(f"- {b}" for b in below)]
    )


def lines_html(lines: Sequence[str]) -> str:
    """Lines of text below a table, as HTML."""
    return table_html([[line] for line in lines]) if lines else ""


def paragraph_html(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def size_text(values: Iterable[float], times: str = " × ") -> str:
    """A size: "32 × 32"."""
    return times.join(f"{value:g}" for value in values)


def place_text(spatial_size: Sequence[int], upsampled: bool) -> str:
    """The spatial size of a macroblock, marked where it lies after upsampling."""
    return size_text(spatial_size) + (" up" if upsampled else "")


def span_text(values: Iterable[float]) -> str:
    """The smallest and the largest: "3 – 17", or the one number that all are."""
    found = list(values)
    low, high = min(found), max(found)
    return f"{low:g}" if low == high else f"{low:g} – {high:g}"


def change_text(pair: tuple[int, int]) -> str:
    """Before and after: "64 → 48", or the one number that stays."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"


def widths_text(pairs: Sequence[tuple[int, int]], most: int = 5) -> str:
    """The first of several widths before and after, and how many there are."""
    return ", ".join(map(change_text, pairs[:most])) + (f", … ({len(pairs)})" if len(pairs) > most else "")


def listed(items: Sequence[str], most: int) -> str:
    """The first of several items, and how many more there are: "conv1, conv2 and 3 more"."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def accuracy_text(values: Mapping[str, float]) -> str:
    """What a test says of several networks: "92.20% original → 88.40% reconstructed"."""
    return " → ".join(f"{share_text(each)} {name}" for name, each in values.items())


def share_text(value: float) -> str:
    """A share: "92.20%"; a number over 1, or below 0, is none."""
    return f"{value:.2%}" if 0 <= value <= 1 else f"{value:.4g}"


def kept_lines(kept: Mapping[str, str], most: int = 12) -> list[str]:
    """What keeps its width, grouped by reason, the most frequent reasons first."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in kept.items():
        by_reason.setdefault(reason, []).append(path)
    ranked = Counter({reason: len(paths) for reason, paths in by_reason.items()}).most_common()
    lines = [f"{listed(by_reason[reason], 3)}: {reason}" for reason, _ in ranked[:most]]
    rest = sum(count for _, count in ranked[most:])
    return [*lines, f"… and {rest} more, for {len(ranked) - most} other reasons"] if rest else lines


def remarks(segments: Iterable[str], kept: Mapping[str, str], notes: Sequence[str]) -> list[str]:
    """The lines below a table: opaque segments, what keeps its width and why, the first notes."""
    names = list(dict.fromkeys(segments))
    lines = ["* opaque segments, scaled as a whole: " + ", ".join(names)] if names else []
    lines += [f"kept  {line}" for line in kept_lines(kept)]
    lines += [f"note  {note}" for note in notes[:MOST_NOTES]]
    return [*lines, f"note  … and {len(notes) - MOST_NOTES} more"] if len(notes) > MOST_NOTES else lines

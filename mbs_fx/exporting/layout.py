"""Lines of Python as formatters break them.

A line that is too long is broken at its last brackets: what is inside goes on a line of its own, or, where that is too
long as well, one part to a line with a comma behind the last.
"""

from __future__ import annotations

WIDTH = 88
_OPEN, _CLOSE = "([{", ")]}"


def lines(text: str, indent: int) -> list[str]:
    """A statement at an indentation of so many spaces."""
    return _broken(text, indent, "")


def _broken(text: str, indent: int, after: str) -> list[str]:
    """A piece of code, with what follows it on its last line."""
    pad = " " * indent
    if len(pad + text + after) <= WIDTH:
        return [pad + text + after]
    found = _last_brackets(text)
    if found is None:
        return [pad + text + after]
    start, end = found
    head, body, tail = text[: start + 1], text[start + 1 : end], text[end:] + after
    inside = " " * (indent + 4)
    parts = _parts(body)
    single_argument = head.startswith("def ") and len(parts) == 1
    if len(inside + body) <= WIDTH and not single_argument:
        return [pad + head, inside + body, pad + tail]
    comma = "" if len(parts) == 1 and " for " in body else ","
    broken = [line for part in parts for line in _broken(part, indent + 4, comma)]
    return [pad + head, *broken, pad + tail]


def _last_brackets(text: str) -> tuple[int, int] | None:
    """Where the last outermost brackets that hold something open and close."""
    depth, start, found = 0, 0, None
    for position, quoted in _outside_text(text):
        if quoted in _OPEN:
            start = position if depth == 0 else start
            depth += 1
        elif quoted in _CLOSE:
            depth -= 1
            if depth == 0 and position > start + 1:
                found = start, position
    return found


def _parts(body: str) -> list[str]:
    """What stands between the outermost commas."""
    depth, start, parts = 0, 0, []
    for position, sign in _outside_text(body):
        depth += (sign in _OPEN) - (sign in _CLOSE)
        if sign == "," and depth == 0:
            parts.append(body[start:position].strip())
            start = position + 1
    rest = body[start:].strip()
    return [*parts, rest] if rest else parts


def _outside_text(text: str) -> list[tuple[int, str]]:
    """Positions and signs outside of quotation marks."""
    found: list[tuple[int, str]] = []
    quoted = False
    for position, sign in enumerate(text):
        if sign == '"':
            quoted = not quoted
        elif not quoted:
            found.append((position, sign))
    return found

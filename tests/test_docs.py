"""Every Python block in the documentation runs, and what its pages name exists."""

import argparse
import ast
import importlib
import re
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
FORMATS = {"mbs_fx.measurement"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = tmp_path / f"{page.stem.lower()}_blocks.py"
    module.write_text("\n".join(blocks(page)))
    namespace = {"__name__": module.stem}
    exec(compile(module.read_text(), str(module), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if f"]({page.name})" not in index] == ["README.md", "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_exist(page):
    for name in set(re.findall(r"`(mbs_fx(?:\.\w+)+)", page.read_text())):
        resolve_name(name)


SOURCES = [path for folder in ("mbs_fx", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def strings(path):
    """Docstrings and messages, the fixed parts of f-strings included."""
    return [
        n.value
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_docstrings_and_messages_exist(path):
    for name in {name for text in strings(path) for name in re.findall(r"mbs_fx(?:\.[A-Za-z_]\w*)+", text)}:
        if name not in FORMATS:
            resolve_name(name)


COMMANDS = sorted(set(re.findall(r"`python benchmarks/(\w+)\.py ?([^`]*)`", (ROOT / "docs" / "paper.md").read_text())))


@pytest.mark.parametrize(("script", "options"), COMMANDS, ids=lambda text: text)
def test_commands_are_understood(script, options, monkeypatch):
    """The parser of the script takes them; nothing is run after it."""

    class UnderstoodError(Exception):
        pass

    def parsed(self, *rest):
        real(self, *rest)
        raise UnderstoodError

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", [script, *options.split()])
    module = importlib.import_module(script)
    with pytest.raises(UnderstoodError):
        module.main()

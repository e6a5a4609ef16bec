"""Every Python block in the documentation runs, and what its pages name exists."""

import argparse
import ast
import importlib
import json
import re
import sys
import tempfile
from pathlib import Path
from pkgutil import resolve_name

import pytest

import mbs_fx

ROOT = Path(__file__).parents[1]
FORMATS = {"mbs_fx.measurement"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = {"text/html": "_repr_html_", "image/png": "_repr_png_"}


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


def test_the_tour_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    """Cell by cell, as a notebook does: the last expression of a cell shows itself."""
    pytest.importorskip("matplotlib", reason="the tour draws: pip install 'mbs-fx[pictures]'")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(tmp_path))
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    names = {}
    shown = []
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "tour.ipynb", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "tour.ipynb", "eval"), names) if last else None
        found = [kind for kind, method in SHOWN.items() if getattr(value, method, lambda: None)()]
        kept = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert set(found) <= kept, cell["source"]
        shown += found
    assert shown.count("text/html") >= 6  # tables and the picture
    assert shown.count("image/png") == 1
    assert (tmp_path / "report.html").exists()


def test_the_site_has_every_page():
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")} | {"tour.ipynb", "benchmarks.md"}
    assert set(re.findall(r": (\S+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.M)) == pages


def test_the_reference_has_every_public_name():
    assert set(re.findall(r"^::: mbs_fx\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)) == set(mbs_fx.__all__)


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

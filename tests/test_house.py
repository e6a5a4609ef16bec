"""The package stays as docs/architecture.md draws it: imports follow the arrow of data, and pieces stay small.

An import counts wherever it stands: at the head of a file, inside a function, or for type checkers only.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mbs_fx"
FILES = sorted(PACKAGE.rglob("*.py"))

# One line per step of the arrow; a folder imports from lines above its own, and from itself.
ORDER = """
    errors algorithm
    results
    runtime folder
    operations
    shapes
    tracing
    geometry
    channels
    macroblocks
    density
    planning
    rewriting
    reconstruction
    training
    pictures
    exporting
    benchmarking
    reducing passes
    reducing_in_steps
    sample
    models
    __init__
    cli
    __main__
"""
# ``__init__`` stands for the public names, which the command line calls as everybody does.
STEP = {room: step for step, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}

LONGEST_FILE = 300
LONGEST_BODY = 40  # lines of a function after its signature and its docstring

PRIVATE = re.compile(r"torch\.(\w+\.)*_[a-zA-Z]")
WITHOUT_TORCH = {"errors", "algorithm", "results", "planning"}


def room(module: str) -> str:
    """The folder or top file of a module: ``mbs_fx.density.measure`` lies in ``density``."""
    return (*module.split("."), "__init__")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(module: str) -> set[str]:
    """What a file imports, in full: ``from mbs_fx.cli import options`` is ``mbs_fx.cli.options``."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {module: imports(module) for module in TREES}
TIES = {
    module: {name if name in TREES else name.rpartition(".")[0] for name in names} & TREES.keys()
    for module, names in IMPORTS.items()
}


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {room(module) for module in TREES} - STEP.keys() == set()


def test_imports_follow_the_arrow() -> None:
    against = [
        f"{importer} imports {imported}"
        for importer in sorted(TIES)
        for imported in sorted(TIES[importer])
        if room(importer) != room(imported) and STEP[room(importer)] <= STEP[room(imported)]
    ]
    assert against == []


def test_no_files_import_each_other_in_a_circle() -> None:
    circle = []
    try:
        TopologicalSorter(TIES).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_results_and_planning_need_no_torch() -> None:
    assert [
        f"{module} imports {name}"
        for module, names in sorted(IMPORTS.items())
        for name in sorted(names)
        if room(module) in WITHOUT_TORCH and name.startswith("torch")
    ] == []


def test_one_file_knows_what_is_private_in_torch() -> None:
    """By import, or written out: ``torch._ops``."""
    found = {module: sorted(filter(PRIVATE.match, names | dotted(module))) for module, names in IMPORTS.items()}
    assert {
        module: names for module, names in found.items() if names and module != "mbs_fx.runtime.torch_private"
    } == {}


def dotted(module: str) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)}


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    assert [
        f"{module}.{node.name} has {length} lines"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := body_length(node)) > LONGEST_BODY
    ] == []


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return (function.end_lineno or 0) - first.lineno + 1


def test_the_documentation_has_every_folder_in_this_order() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    named = [Path(name).stem for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    assert named == sorted(named, key=STEP.__getitem__)
    assert {room(module) for module in TREES} - set(named) == {"__init__"}


def test_type_checkers_read_the_annotations() -> None:
    assert (PACKAGE / "py.typed").is_file()

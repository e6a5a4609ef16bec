"""What is checked before a change lands: ``nox`` runs all of it, ``nox -s lint`` one step.

``.ci/run`` runs the same steps in one environment.
"""

import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"

TYPED = (2, 14)
"""The oldest torch whose annotations the types are checked against; the package runs on older ones."""

DEV = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]["dev"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    install(session, *DEV)
    session.run("ruff", "check", external=True)
    session.run("ruff", "format", "--check", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Pyright in strict mode, with everything installed that the package imports."""
    install(session, ".[test]", *DEV)
    torch = session.run("python", "-c", "import importlib.metadata as m; print(m.version('torch'))", silent=True)
    if tuple(map(int, str(torch).split(".")[:2])) < TYPED:
        session.skip(f"torch {torch} annotates torch.fx otherwise than {'.'.join(map(str, TYPED))} and newer")
    session.run("pyright", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The site of the documentation; a link or a name that leads nowhere is an error."""
    install(session, ".[docs]")
    session.run(
        *("mkdocs", "build", "--strict", "--quiet", "--site-dir", session.create_tmp()),
        env={"NO_MKDOCS_2_WARNING": "1"},
        external=True,
    )


@nox.session
def tests(session: nox.Session) -> None:
    """README's own command, so that what people are told to run is what is run here."""
    readme = Path("README.md").read_text(encoding="utf-8")
    command = re.search(r"^pip install .*&& python -m pytest$", readme, re.MULTILINE)
    if command is None:
        session.error("README.md names no test command (pip install ... && python -m pytest)")
    session.run("bash", "-euo", "pipefail", "-c", command[0], external=True)


def install(session: nox.Session, *packages: str) -> None:
    """Into the session's environment; with ``--no-venv`` into the one that nox runs in."""
    session.run("python", "-m", "pip", "install", "--quiet", *packages, external=True)

"""What the site needs beyond docs/: benchmarks/README.md as a page, and links that lead there."""

from pathlib import Path
from typing import Any

PAGE = "benchmarks.md"
SOURCE = Path(__file__).parents[1] / "benchmarks" / "README.md"


def on_files(files: Any, config: Any) -> Any:
    """Add the page, with its links to docs/ as links beside it."""
    from mkdocs.structure.files import File

    text = SOURCE.read_text(encoding="utf-8").replace("](../docs/", "](").replace("](../README.md", "](README.md")
    files.append(File.generated(config, PAGE, content=text))
    return files


def on_page_markdown(markdown: str, **_given: Any) -> str:
    """Lead links to benchmarks/README.md to the page."""
    return markdown.replace("](../benchmarks/README.md", f"]({PAGE}")

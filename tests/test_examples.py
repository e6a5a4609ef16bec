"""Every page of docs/examples runs where the libraries that it needs are installed."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.md"))
NEEDED = {
    "ultralytics.md": ["ultralytics"],
    "transformers.md": ["transformers", "accelerate"],
    "segmentation.md": ["segmentation_models_pytorch"],
    "timm.md": ["timm"],
    "torchvision.md": ["torchvision"],
    "lightning.md": ["pytorch_lightning"],
}


def test_every_page_names_its_libraries() -> None:
    assert {page.name for page in PAGES} == set(NEEDED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():  # those of other people's libraries
        warnings.simplefilter("ignore")
        for library in NEEDED[page.name]:
            pytest.importorskip(library, reason=f"the page needs {library}")
        monkeypatch.chdir(tmp_path)
        code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
        module = tmp_path / f"{page.stem}_page.py"
        module.write_text(code, encoding="utf-8")
        exec(compile(code, str(module), "exec"), {"__name__": module.stem})

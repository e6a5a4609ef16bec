"""One rank of a measurement, started by tests/test_density_ranks.py as torchrun would start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from density_helpers import chain_analysis, small_net
from torch import Tensor, fx
from torch.utils.data import Dataset

from mbs_fx.density import measure
from mbs_fx.errors import MBSError


class Images(Dataset[Tensor]):
    """Random images; ``trouble`` at one of them."""

    def __init__(self, trouble: str) -> None:
        self.images = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        self.trouble = trouble

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index == 40 and self.trouble == "dies":
            os._exit(7)
        if index == 40 and self.trouble == "fails":
            raise OSError("disk on fire")
        return self.images[index]


def main(trouble: str, folder: Path) -> None:
    torch.set_num_threads(1)
    gm = fx.symbolic_trace(small_net())
    rank = os.environ.get("RANK", "alone")
    settings = {"confidence": 0.9} if trouble == "stops" else {"confidence": None}
    try:
        analysis = chain_analysis(gm, (1, 3, 16, 16))
        density = measure(gm, Images(trouble), analysis=analysis, batch_size=7, timeout=20, **settings)
    except MBSError as error:
        (folder / f"{rank}.error").write_text(str(error))
        sys.exit(1)
    (folder / f"{rank}.json").write_text(density.to_json())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

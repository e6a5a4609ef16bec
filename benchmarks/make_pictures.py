"""The pictures in docs/pictures/.

    python benchmarks/make_pictures.py [--out docs/pictures]

The trained ResNet-20 that comes with mbs_fx, measured on its images, as a picture and as plots; a ResNet-1202;
torchvision's ResNet-50 and ShuffleNetV2, whose units are opaque.  Where chromium is installed also the report of
ResNet-20, as a person sees it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import torchvision

import mbs_fx
from mbs_fx import sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    gm = mbs_fx.trace(sample.trained())
    analysis = mbs_fx.analyze(gm, (1, 3, 32, 32))
    density = mbs_fx.measure(gm, sample.images())
    plan = mbs_fx.plan(analysis, density)
    mbs_fx.draw(analysis, out / "resnet20.svg", density=density, plan=plan, title="ResNet-20")
    mbs_fx.plot(analysis, density, plan, out / "resnet20-plots.png", title="ResNet-20")

    others = {
        "resnet50": (torchvision.models.resnet50().eval(), 224, "ResNet-50"),
        "resnet1202": (sample.resnet(1202), 32, "ResNet-1202"),
        "shufflenet": (torchvision.models.shufflenet_v2_x1_0().eval(), 224, "ShuffleNetV2"),
    }
    for name, (net, size, title) in others.items():
        found = mbs_fx.analyze(mbs_fx.trace(net), (1, 3, size, size))
        mbs_fx.draw(found, out / f"{name}.svg", plan=mbs_fx.plan(found), title=title)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        report = mbs_fx.write_report(analysis, density, plan, Path(folder) / "report.html", title="ResNet-20")
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            print("no chromium: the picture of the report is left as it is")
        else:
            flags = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1600,1100", "--no-first-run")
            flags += (
                "--disable-background-networking",
                "--disable-component-update",
                f"--user-data-dir={folder}/profile",
            )
            flags += ("--virtual-time-budget=8000",)  # until the page's own script has filled it in
            where = f"--screenshot={out / 'report.png'}"
            subprocess.run([browser, *flags, where, report.as_uri()], check=True, capture_output=True)
    for path in sorted(out.iterdir()):
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

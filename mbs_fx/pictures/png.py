"""An SVG as pixels, by resvg; fonts come with matplotlib where the machine has none."""

from __future__ import annotations

from pathlib import Path

from mbs_fx.errors import MBSError

ZOOM = 2.0
"""Pixels per point: sharp on present screens."""
EXTRA = "pip install 'mbs-fx[pictures]'"


def png(svg: str) -> bytes:
    """The picture as PNG."""
    try:
        import matplotlib
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise MBSError(f"a .png needs {error.name}, which is not installed: {EXTRA}, or write an .svg") from error
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return svg_to_bytes(svg_string=svg, zoom=ZOOM, font_dirs=[str(fonts)], sans_serif_family="DejaVu Sans")

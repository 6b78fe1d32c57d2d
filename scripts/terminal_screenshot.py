"""Draws the terminal of a run as an SVG; the README shows a browser's screenshot of it.

    python scripts/terminal_screenshot.py mnv2.py WORKDIR OUT.svg

It runs the config in WORKDIR, which must not be there yet, and writes what the command would print.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from rich.console import Console

from jaxtl.cli import keep_compiled_programs
from jaxtl.config.config_file import load
from jaxtl.training.setup import open_data, train

_WIDTH = 150  # characters


def main() -> None:
    """Runs and draws."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("config")
    flags.add_argument("workdir", type=Path)
    flags.add_argument("drawing", type=Path)
    given = flags.parse_args()
    keep_compiled_programs()
    out = Console(record=True, width=_WIDTH, highlight=False, file=io.StringIO())
    config = load(given.config, {})
    train(config, open_data(config), given.workdir, out)
    out.print()  # the drawing cuts off what hangs below its last line
    svg = out.export_svg(title=f"python -m jaxtl.train --cfg {given.config}")
    # Rich links its fonts from elsewhere; the reader's own monospace font will do.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    given.drawing.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"))


if __name__ == "__main__":
    main()

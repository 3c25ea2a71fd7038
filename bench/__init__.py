"""Side-by-side measurements against lm-eval: `make bench`, `make bench-core`, `make bench-gpu`.

They print tables, write them into docs/speed.md and leave figures in bench/figures. Nothing here is
part of the package, and no test depends on a time.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

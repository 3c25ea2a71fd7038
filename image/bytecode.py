"""Within the image's build: the bytecode of what a run imports, in a tree of its own.

The image can't be written to, so without it every process would compile torch's and transformers'
sources again. It lies outside of the packages, whose files stay what their RECORDs say, and each
file holds its source's hash: changed source is never run as its old bytecode, and two builds make
the same.
"""

import os
import py_compile
import sys
import tempfile
from pathlib import Path


def run_demo() -> None:
    """Import what a run imports, by running one in this process."""
    from evalkit import cli

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["evalkit", "eval", "--model", "demo", "--suite", "demo", "--limit", "1"]
        sys.argv += ["--out", folder, "--workers", "0", "--offline"]
        try:
            cli.run()
        except SystemExit as stop:
            if stop.code:
                raise


def imported() -> list[Path]:
    """The sources of what was imported, in order."""
    import peft  # noqa: F401  # what only some runs need
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    found = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    # torch names files of modules that it makes up
    return [Path(name) for name in sorted(found) if name[:1] == "/" and name.endswith(".py")]


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run_demo()
    own = Path(__file__).resolve().parent
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    sources = [path for path in imported() if own not in path.parents]
    for path in sources:
        py_compile.compile(str(path), doraise=True, invalidation_mode=mode)
    print(f"bytecode of {len(sources)} modules")

"""evalkit's command line on a compute node: the environment it was submitted from, or an Apptainer
image that sees nothing but what it is given.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

SCRATCH = '"$scratch"'  # the batch script's variable


def native() -> tuple[str, ...]:
    """This environment's own command."""
    beside = Path(sys.executable).with_name("evalkit")
    if beside.is_file():
        return (os.fspath(beside),)
    return (sys.executable, "-P", "-c", "from evalkit.cli import main; main()")


def apptainer(
    image: Path, *, written: Iterable[Path], read: Iterable[Path], packed: dict[Path, Path],
    gpus: bool, scratch: str = SCRATCH,
) -> tuple[str, ...]:  # fmt: skip
    """The command in an image. Paths lie where they lie outside; `written` may be written to,
    `read` not, and `packed` gives folders whose content a squashfs file holds."""
    binds = [f"{path}:{path}" for path in written]
    binds += [f"{path}:{path}:ro" for path in read]
    binds += [f"{file}:{path}:image-src=/,ro" for path, file in packed.items()]
    return (
        "apptainer", "exec", *(["--nv"] if gpus else []),
        "--cleanenv", "--containall", "--no-home", "--no-mount", "bind-paths", "--pwd", "/tmp",
        *(word for bind in binds for word in ("-B", bind)),
        "-B", f"{scratch}:/tmp", os.fspath(image), "evalkit",
    )  # fmt: skip

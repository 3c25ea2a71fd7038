"""The whole of `evalkit reproduce`: the original obtained, then reproduced or only planned.

A statement about an original that came packed is kept beside the reproductions.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from evalkit import attest, canon
from evalkit.errors import Exit
from evalkit.events import Events
from evalkit.keys import Private
from evalkit.reproduce import Wanted, prepared, reproduce
from evalkit.reproduce.obtain import obtained

__all__ = ["Said", "Wanted", "run"]


@dataclass(frozen=True, slots=True)
class Said:
    """What there is to print, and the exit code."""

    lines: list[str]
    exit_code: Exit


def run(
    where: str, wanted: Wanted, argv: list[str], key: Private | None, *, only_plan: bool
) -> Said:
    """Reproduce the run that `where` names: a folder, a pack, or a pack's address."""
    if wanted.given.get("offline"):
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with obtained(where) as original:
        if only_plan:
            return Said(prepared(original, wanted).lines(), Exit.OK)
        outcome = reproduce(original, wanted, Events(), argv, key)
        lines = [f"again     {outcome.made}"] if outcome.made else []
        if key is not None and original != Path(where):
            kept = wanted.out / f"{original.name}.{attest.NAME}"
            canon.make_folder(wanted.out)
            canon.write_atomic(kept, (original / attest.NAME).read_bytes())
            lines.append(f"signed    {kept}: to be put into the original as {attest.NAME}")
        return Said([*lines, *outcome.lines()], outcome.exit_code)

"""The whole of `evalkit reproduce`: the original obtained, then reproduced or only planned.

A statement about an original that came packed is kept beside the reproductions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import Exit
from evalkit.base.events import Events
from evalkit.inputs import hub
from evalkit.judge.reproduce import Wanted, prepared, reproduce
from evalkit.judge.reproduce.differences import Difference
from evalkit.judge.reproduce.obtain import obtained
from evalkit.record.signing import attest
from evalkit.record.signing.keys import Private

__all__ = ["Said", "Wanted", "run"]


@dataclass(frozen=True, slots=True)
class Said:
    """What there is to print, for people and for programs, and the exit code."""

    lines: list[str]
    found: dict[str, Any]
    exit_code: Exit


def run(
    where: str, wanted: Wanted, argv: list[str], key: Private | None, *, only_plan: bool
) -> Said:
    """Reproduce the run that `where` names: a folder, a pack, or a pack's address."""
    if wanted.given.get("offline"):
        hub.go_offline()
    with obtained(where) as original:
        if only_plan:
            planned = prepared(original, wanted)
            return Said(planned.lines(), {"differences": _told(planned.differences)}, Exit.OK)
        outcome = reproduce(original, wanted, Events(), argv, key)
        lines = [f"again     {outcome.made}"] if outcome.made else []
        if key is not None and original != Path(where):
            kept = wanted.out / f"{original.name}.{attest.NAME}"
            canon.make_folder(wanted.out)
            canon.write_atomic(kept, (original / attest.NAME).read_bytes())
            lines.append(f"signed    {kept}: to be put into the original as {attest.NAME}")
        found = {
            **outcome.claim,
            "differences": _told(outcome.differences),
            "made": str(outcome.made) if outcome.made else None,
        }
        return Said([*lines, *outcome.lines()], found, outcome.exit_code)


def _told(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    return [asdict(difference) for difference in differences]

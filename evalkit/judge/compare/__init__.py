"""`compare` says what the difference between two evaluations is worth.

The first run is compared with each of the others, document by document; the result is a
`Comparison`. `text.markdown` and `text.to_json` show it, `gate.check` judges it by a policy. No
record is believed to be true: `verify` says what is known of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalkit.base import statistics
from evalkit.base.errors import EvalkitError
from evalkit.base.machine import stamp
from evalkit.judge.compare import flips as flipping
from evalkit.judge.compare import pairs as pairing
from evalkit.judge.compare.flips import Excerpt, Flip
from evalkit.judge.compare.pairs import Kept, LeftOut, Row
from evalkit.record.reading import scored
from evalkit.record.reading.folder import foreign
from evalkit.record.reading.scored import Scored
from evalkit.record.types import Record

__all__ = ["Comparison", "Excerpt", "Flip", "Kept", "LeftOut", "Pair", "Row", "Side", "compare"]

READ = 6  # flips of each pair that are shown with their texts


@dataclass(frozen=True, slots=True)
class Side:
    """One of the evaluations: its letter and the record's `ids`, empty for lm-eval's results."""

    label: str
    path: str
    model: str
    kind: str
    ids: dict[str, str]
    execution: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides. `notes`: what a reader should know before reading the rows."""

    before: Side
    after: Side
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    flips: tuple[Flip, ...]
    excerpts: tuple[Excerpt, ...]
    kept: tuple[Kept, ...]

    @property
    def tops(self) -> list[Row]:
        """The headline rows of the tasks and groups that were asked for."""
        return [row for row in self.rows if row.top and row.headline]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs; `tests` is how many p-values Holm's adjustment covers."""

    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    tests: int
    teacher: bool
    seed: int


def compare(
    paths: Sequence[Path], *, names: Sequence[str] = (), teacher: bool = False, seed: int = 0
) -> Comparison:
    """Compare the first run with each of the others; EvalkitError where a run can't be read or no
    task can be paired. `names`: what to call the paths; `teacher`: the first is a teacher, the
    others its students; `seed` fixes the bootstrap's draws."""
    if len(paths) < 2:
        raise EvalkitError("two runs are needed", fix="usage: evalkit compare A B [C ...]")
    runs = [scored.read(path) for path in paths]
    called = names or list(map(str, paths))
    sides = [_side(letters(index), name, run)
             for index, (name, run) in enumerate(zip(called, runs, strict=True))]  # fmt: skip
    made = []
    for run, side in zip(runs[1:], sides[1:], strict=True):
        with foreign(run.path):
            made.append(_pair(runs[0], run, sides[0], side, teacher, seed))
    pairs, tests = _adjusted(made)
    return Comparison(tuple(sides), tuple(pairs), tests, teacher, seed)


def letters(index: int) -> str:
    """What the index-th side goes by: A to Z, then AA to ZZ and so on."""
    before, last = divmod(index, 26)
    return (letters(before - 1) if before else "") + chr(ord("A") + last)


def _side(label: str, path: str, run: Scored) -> Side:
    if run.record is None:
        return Side(label, path, run.name, "lm-eval results", {}, "")
    return Side(
        label, path, run.name, "evalkit record",
        {name: str(digest) for name, digest in run.record["ids"].items()},
        run.record["execution"],
    )  # fmt: skip


def _pair(
    before: Scored, after: Scored, old: Side, new: Side, teacher: bool, seed: int
) -> Pair:  # fmt: skip
    rows, left_out = pairing.rows(before, after)
    if not rows:
        reasons = "; ".join(f"{item.task}: {item.reason}" for item in left_out[:3])
        raise EvalkitError(
            "no task can be paired: " + (reasons or "no leaf task on either side"),
            where=f"{old.path} and {new.path}",
            fix="compare runs of the same questions",
        )
    found = flipping.flips(before, after, rows)
    chosen = flipping.choose(found, READ)
    kept = [
        pairing.kept(before, after, row, seed)
        for row in rows
        if teacher and row.top and row.headline and not row.nats and row.higher_is_better
    ]
    return Pair(
        old, new, tuple(_notes(before, after, rows)), tuple(rows), tuple(left_out), tuple(found),
        tuple(flipping.excerpts(before, after, chosen)), tuple(kept),
    )  # fmt: skip


def _notes(before: Scored, after: Scored, rows: list[Row]) -> list[str]:
    """Return what differs between the sides beside the scores."""
    found = []
    leaves = dict.fromkeys(leaf for row in rows for leaf in row.leaves)
    unlike = [n for n in leaves if before.leaves[n].prompts != after.leaves[n].prompts]
    if unlike:
        found.append(
            f"{len(unlike):,} of {len(leaves):,} leaf tasks were asked with other prompts "
            f"({', '.join(unlike[:3])}{', ...' if len(unlike) > 3 else ''})"
        )
    old, new = before.record, after.record
    if old is None or new is None:
        return found
    if old["execution"] == new["execution"]:
        found.append("both are the same execution")
    for name in ("model", "numerics", "engine", "environment"):
        found += _unlike(name, old, new)
    if old["ids"]["answers"] == new["ids"]["answers"]:
        found.append("all answers are equal, bit for bit")
    return found


def _unlike(name: str, old: Record, new: Record) -> list[str]:
    """Return a note where a section differs in what decides answers."""
    one, other = _decisive(name, old), _decisive(name, new)
    keys = [key for key in one if one[key] != other.get(key)]
    return [f"{name} differs in {', '.join(keys)}"] if keys else []


def _decisive(name: str, record: Record) -> Mapping[str, object]:
    """Return what in a section of a record decides answers."""
    if name == "environment":
        environment, machine = record["environment"], ("cpu", "gpu", *stamp.GPU_PARTS)
        return {**environment["versions"], **{part: environment.get(part) for part in machine}}
    if name == "model":
        model = record["model"]
        return {key: model.get(key) for key in ("files", "adapter", "chat_template")}
    return record["numerics"] if name == "numerics" else record["engine"]


def _adjusted(pairs: list[Pair]) -> tuple[list[Pair], int]:
    """Return the pairs with Holm's p-values over all headline rows, and how many those are."""
    p_values = [row.p for pair in pairs for row in pair.tops if row.p is not None]
    adjusted = iter(statistics.holm(p_values))
    found = []
    for pair in pairs:
        rows = [
            replace(row, adjusted=next(adjusted))
            if row.top and row.headline and row.p is not None
            else row
            for row in pair.rows
        ]
        found.append(replace(pair, rows=tuple(rows)))
    return found, len(p_values)

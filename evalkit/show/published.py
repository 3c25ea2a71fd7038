"""Scores that others published: suites/published.yaml, each row with its protocol and source.

A row is shown beside a run's own score with every difference of protocol. `check` compares a run
with the rows of its own protocol, within their standard errors. Nothing is fetched.
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from evalkit.base import canon, schema
from evalkit.base.errors import EvalkitError, Exit
from evalkit.inputs import locked
from evalkit.inputs import suite as suites
from evalkit.record.reading import identity, score_table
from evalkit.record.types import Record

ERRORS = 2  # standard errors of the difference that a reproduced figure may be off


@dataclass(frozen=True, slots=True)
class Published:
    """A published figure. `differs`: how its protocol differs from lm-eval's task, if it does."""

    model: str
    task: str
    metric: str
    shots: int
    value: float
    stderr: float | None
    harness: str
    differs: str | None
    source: str


@cache
def rows() -> tuple[Published, ...]:
    """Return every shipped row."""
    body = locked.read_yaml(suites.FOLDER / suites.PUBLISHED, "table of published figures")
    problems = schema.check("published", body)
    assert not problems, f"{suites.PUBLISHED} does not fit its schema: {problems[0]}"
    return tuple(Published(**row) for row in body["rows"])


@dataclass(frozen=True, slots=True)
class Match:
    """A row beside a record's own score; `differs` names every difference of protocol, or none."""

    row: Published
    score: float
    stderr: float | None
    differs: tuple[str, ...]

    @property
    def within(self) -> bool:
        """Whether the scores differ by no more than two standard errors of the difference."""
        errors = [error for error in (self.stderr, self.row.stderr) if error is not None]
        allowed = ERRORS * sum(error**2 for error in errors) ** 0.5
        return bool(abs(self.score - self.row.value) <= allowed)

    def __str__(self) -> str:
        row = self.row
        figure = f"{row.task} {row.metric} {row.value:.4f} ({row.harness}, {row.shots} shots)"
        if not self.differs:
            return f"{figure}, by the same protocol; {row.source}"
        return f"{figure}: another protocol: {'; '.join(self.differs)}; {row.source}"


def matches(record: Record) -> list[Match]:
    """Return the rows of a record's model, tasks and metrics: those with its shots, else all."""
    matched = []
    for name, entry in {**record["groups"], **record["tasks"]}.items():
        leaves = score_table.below(record, name)
        shots = {record["tasks"][leaf]["num_fewshot"] for leaf in leaves}
        for key, metric in sorted(entry["metrics"].items()):
            same = [
                row
                for row in rows()
                if (row.model, row.task, row.metric)
                == (record["model"]["reference"], name, key.partition(",")[0])
            ]
            for row in [row for row in same if {row.shots} == shots] or same:
                error = metric["stderr"]
                matched.append(
                    Match(
                        row, canon.number(metric["value"]),
                        None if error is None else canon.number(error),
                        tuple(_differences(record, row, shots)),
                    )
                )  # fmt: skip
    return matched


def _differences(record: Record, row: Published, shots: set[int]) -> list[str]:
    differences = [row.differs] if row.differs else []
    if shots != {row.shots}:
        here = ", ".join(map(str, sorted(shots)))
        differences.append(f"{row.shots} shots, here {here}")
    if record["suite"]["partial"]:
        differences.append("here only a part of the documents")
    if record["suite"]["apply_chat_template"]:
        differences.append("here with a chat template")
    return differences


@dataclass(frozen=True, slots=True)
class Validation:
    """A run's scores beside published ones: of the same protocol (at least one), and of others."""

    same: tuple[Match, ...]
    others: tuple[Match, ...]

    @property
    def exit_code(self) -> Exit:
        """1 where one of the same protocol is not met."""
        return Exit.OK if all(match.within for match in self.same) else Exit.FAILED

    def lines(self) -> list[str]:
        """Return a line for each match."""
        same = [
            f"{'PASS' if match.within else 'FAIL'}  {match.score:.4f} here, published {match}"
            for match in self.same
        ]
        return same + [f"NOTE  published {match}" for match in self.others]

    def to_json(self) -> list[dict[str, object]]:
        """Return the matches for programs."""
        return [
            {**asdict(match), "within": match.within if not match.differs else None}
            for match in (*self.same, *self.others)
        ]


def check(folder: Path) -> Validation:
    """Compare a finished run with every published figure of its model. Raises EvalkitError (2)
    where there is none of the same protocol."""
    record = identity.read_record(folder)
    try:
        matched = matches(record)
    except ArithmeticError as error:  # a number that no float holds
        raise EvalkitError(f"record.json holds {error}", where=str(folder)) from None
    same = tuple(match for match in matched if not match.differs)
    if not same:
        raise EvalkitError(
            f"no published figure of '{record['model']['reference']}' has this run's protocol",
            where=suites.PUBLISHED,
            fix="add one with its source" + (f"; there is {matched[0]}" if matched else ""),
        )
    return Validation(same, tuple(match for match in matched if match.differs))

"""A record's scores as flat rows: one a task or group, metric and filter, with all that a reader of
the number needs. Every format is made from these.
"""

from dataclasses import asdict, dataclass
from typing import Any

from evalkit import canon, summary


@dataclass(frozen=True, slots=True)
class Row:
    """One score. `depth`: how far below the suite's members it stands; `leaf`: not a group."""

    model: str
    suite: str
    task: str
    depth: int
    leaf: bool
    metric: str
    filter: str
    value: float
    stderr: float | None
    stderr_method: str | None
    higher_is_better: bool | None
    shots: str
    documents: int
    partial: bool
    dataset: str
    dataset_revision: str
    run: str
    answers: str
    execution: str

    def to_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)

    @property
    def name(self) -> str:
        """The metric as lm-eval's table names it: the filter only where it is one."""
        return self.metric if self.filter == "none" else f"{self.metric},{self.filter}"


def rows(record: dict[str, Any]) -> list[Row]:
    """Every score of a record: members and groups as in the score table, then the leaf tasks of
    groups."""
    headline = summary.rows(record)
    shown = {name for _, name in headline}
    rest = [(-1, name) for name in record["tasks"] if name not in shown]
    return [row for depth, name in [*headline, *rest] for row in _of(record, name, depth)]


def headline(record: dict[str, Any]) -> list[Row]:
    """The scores of the suite's members alone."""
    return [row for row in rows(record) if row.depth == 0]


def _of(record: dict[str, Any], name: str, depth: int) -> list[Row]:
    leaf = name not in record["groups"]
    result = record["tasks"][name] if leaf else record["groups"][name]
    dataset = result["dataset"] if leaf else {"repo": "", "revision": ""}
    revision = dataset["revision"]
    found = []
    for key, entry in sorted(result["metrics"].items()):
        metric, _, filtered = key.partition(",")
        stderr = entry["stderr"]
        found.append(
            Row(
                model=record["model"]["reference"], suite=record["suite"]["name"], task=name,
                depth=depth, leaf=leaf, metric=metric, filter=filtered,
                value=canon.number(entry["value"]),
                stderr=None if stderr is None else canon.number(stderr),
                stderr_method=entry["stderr_method"],
                higher_is_better=entry["higher_is_better"],
                shots=summary.shots(record, name), documents=result["n"],
                partial=record["suite"]["partial"], dataset=dataset["repo"],
                dataset_revision="unknown" if isinstance(revision, dict) else revision,
                run=record["ids"]["run"], answers=record["ids"]["answers"],
                execution=record["execution"],
            )
        )  # fmt: skip
    return found

"""What is shown or exported: a run's record, or lm-eval's own results in a record's form, verified
first.

What contradicts itself is refused. With `unverified` it is let through, and everything that is made
of it carries the mark.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.verify import Report, Wanted, plain, verify
from evalkit.record.reading import read
from evalkit.record.reading.lm_eval import results
from evalkit.record.reading.lm_eval.as_record import as_record


@dataclass(frozen=True, slots=True)
class Source:
    """A finished run. `whole`: it has a record of its own; else it is lm-eval's results."""

    path: Path
    record: dict[str, Any]
    report: Report = field(repr=False)
    whole: bool

    @property
    def mark(self) -> str:
        """What stands beside everything that is made of it: BROKEN or DISPUTED, or nothing."""
        return "" if self.report.consistent else self.report.verdict.partition(":")[0]

    def samples(
        self, task: str | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Its samples with their leaf task's name, of one leaf task or of all, at most `limit`."""
        found = read.samples(self.path) if self.whole else _samples(self.path)
        return islice((s for s in found if task is None or s["task"] == task), limit)


def source(run: Path, *, unverified: bool = False, wanted: Wanted | None = None) -> Source:
    """Read and verify a run, or what lm-eval wrote.

    EvalkitError (3) where there is neither, (1) where it can't be read, or contradicts itself and
    `unverified` does not let it through.
    """
    asked = wanted or Wanted()
    if (run / "record.json").is_file() or not plain.results_in(run):
        record = read.record(run)
        made = Source(run, record, verify(run, asked), whole=True)
    else:
        found = results.find(run)
        report = plain.verify(found.folder, f"results_{found.time}.json", asked=asked.asked)
        made = Source(run, as_record(found), report, whole=False)
    if made.mark and not unverified:
        raise EvalkitError(
            made.report.verdict, where=str(run), code=Exit.FAILED,
            fix="see `evalkit verify`; --unverified goes on and marks what is made",
        )  # fmt: skip
    return made


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    for document in results.find(path).documents():
        yield from document.samples

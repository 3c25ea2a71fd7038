"""What is shown or exported: a verified record, or lm-eval's own results in a record's form; its
scores as flat rows, of which every export is made; and the first facts about it.

A record that contradicts itself is refused, or with `unverified` marked in all that is made of
it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.samples import Sample
from evalkit.judge.verify import Report, Wanted, plain, verify
from evalkit.record.imported import as_record
from evalkit.record.reading import identity, lm_eval, score_table
from evalkit.record.reading.score_table import Score
from evalkit.record.types import AnyRecord

Fact = tuple[str, str]  # name, value
COLUMNS = (
    *("model", "suite", "task", "depth", "leaf", "metric", "filter", "value", "stderr"),
    *("stderr_method", "higher_is_better", "share", "low", "high", "headline", "shots"),
    *("documents", "partial", "dataset", "dataset_revision", "run", "answers", "execution", "mark"),
)
Cell = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Source:
    """A finished run. `whole`: it has a record of its own; else it is lm-eval's results."""

    path: Path
    record: AnyRecord
    report: Report = field(repr=False)
    whole: bool

    @property
    def mark(self) -> str:
        """What stands beside everything that is made of it: BROKEN or DISPUTED, or nothing."""
        return "" if self.report.consistent else self.report.verdict.partition(":")[0]

    def samples(self, task: str | None = None, limit: int | None = None) -> Iterator[Sample]:
        """Yield its samples, of one leaf task or of all, at most `limit`."""
        if self.whole:
            samples = identity.read_samples(self.path)
        else:
            documents = lm_eval.find(self.path).documents()
            samples = (sample for document in documents for sample in document.samples)
        return islice((s for s in samples if task is None or s["task"] == task), limit)


def source(run: Path, *, unverified: bool = False, wanted: Wanted | None = None) -> Source:
    """Read and verify a run, or what lm-eval wrote. EvalkitError (3) where there is neither, (1)
    where it can't be read, or contradicts itself and `unverified` does not let it through."""
    wanted = wanted or Wanted()
    if (run / "record.json").is_file() or not plain.results_in(run):
        record = identity.read_record(run)
        made = Source(run, record, verify(run, wanted), whole=True)
    else:
        written = lm_eval.find(run)
        report = plain.verify(written.folder, f"results_{written.time}.json", asked=wanted.asked)
        made = Source(run, as_record(written), report, whole=False)
    if made.mark and not unverified:
        raise EvalkitError(
            made.report.verdict, where=str(run), code=Exit.FAILED,
            fix="see `evalkit verify`; --unverified goes on and marks what is made",
        )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True)
class Row:
    """A score of a record. `mark`: BROKEN or DISPUTED, where the record is."""

    score: Score
    record: AnyRecord
    mark: str

    def to_json(self) -> dict[str, Cell]:
        """Return the row's cells by COLUMNS."""
        score, record = self.score, self.record
        task = None if score.is_group else record["tasks"].get(score.task)
        dataset = task["dataset"] if task else {"repo": "", "revision": ""}
        revision = dataset["revision"]
        cells = (
            *(score_table.model_name(record), record["suite"]["name"], score.task, score.depth),
            *(not score.is_group, score.metric_name, score.filter, score.value, score.stderr),
            *(score.stderr_method, score.higher_is_better, score.share, score.low, score.high),
            *(score.headline, score.shots, score.count, record["suite"]["partial"]),
            *(dataset["repo"], "unknown" if isinstance(revision, dict) else revision),
            *(record["ids"]["run"], record["ids"]["answers"], record["execution"], self.mark),
        )
        return dict(zip(COLUMNS, cells, strict=True))


def rows(record: AnyRecord, mark: str = "") -> list[Row]:
    """Return every score of a record: each group with its subgroups and leaf tasks below it."""
    scores: dict[tuple[str, str], Score] = {}
    for score in score_table.scores(record, leaves=True):
        scores.setdefault((score.task, score.metric), score)
    return [Row(score, record, mark) for score in scores.values()]


def headline_rows(record: AnyRecord, mark: str = "") -> list[Row]:
    """Return the scores of the suite's members alone, with all their metrics."""
    return [row for row in rows(record, mark) if row.score.depth == 0]


def facts(record: AnyRecord) -> list[Fact]:
    """Return what a reader of scores wants first (revision, size, hardware, date), where known."""
    model: Mapping[str, object] = record["model"]
    environment: Mapping[str, object] = record["environment"]
    parameters, image = model.get("parameters"), environment.get("image")
    named = [
        ("revision", _short(model.get("revision"))),
        ("parameters", _count(parameters) if isinstance(parameters, int) else ""),
        ("dtype", _text(record["numerics"]["dtype"])),
        ("hardware", _hardware(environment)),
        ("image", _short(image.get("digest") if isinstance(image, dict) else image)),
        ("evalkit", _text(record["environment"]["versions"].get("evalkit"))),
        ("commit", _short(record["code"]["commit"] if "code" in record else "")),
        ("date", str(record["created"] or "")[:10]),
    ]
    return [(name, value) for name, value in named if value]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _short(value: object) -> str:
    """Return the first 12 digits of a digest or a commit; another text as it is."""
    text = _text(value).removeprefix("sha256:")
    is_hex = len(text) >= 40 and all(char in "0123456789abcdef" for char in text)
    return text[:12] if is_hex else text


def _count(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _hardware(environment: Mapping[str, object]) -> str:
    gpus = environment.get("gpu")
    if isinstance(gpus, list) and gpus:
        names = [str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu) for gpu in gpus]
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())
    return _text(environment.get("cpu"))

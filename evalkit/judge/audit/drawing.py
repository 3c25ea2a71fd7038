"""Draws the samples of an audit, and collects from the record what was asked and answered.

The draw follows from the record's digest and a seed, so anyone can repeat it. Prompts are tokenised
again from the samples' texts and must be the plan's.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.inputs.types import Answer
from evalkit.plan.batch import Batch, BatchTarget
from evalkit.plan.requests.request import Request, Terms, new_tokens, recorded_terms, settings_from
from evalkit.plan.store import Plan
from evalkit.plan.tokenise import Encoder, Row, tokenise
from evalkit.record import journal
from evalkit.record.reading import scored
from evalkit.record.reading.evidence.samples import Document

Name = tuple[str, int]  # leaf task and doc_id


@dataclass(slots=True)
class Drawn:
    """A drawn sample: its requests' rows and recorded answers by part id, and its problems."""

    name: Name
    rows: dict[str, Row] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def draw(names: Iterable[Name], record_sha256: str, seed: int, count: int) -> list[Name]:
    """Return the `count` samples whose sha256 with the record's digest and the seed is lowest."""

    def key(name: Name) -> bytes:
        return hashlib.sha256(f"{record_sha256}/{seed}/{name[0]}/{name[1]}".encode()).digest()

    return sorted(sorted(names, key=key)[:count])


def draw_of(folder: Path, names: Iterable[Name], seed: int, count: int) -> list[Name]:
    """Draw `count` of the names for the record in a run's folder."""
    return draw(names, canon.sha256_file(folder / "record.json"), seed, count)


def names(run: scored.Scored) -> list[Name]:
    """Return the names of all samples of a run."""
    return [(leaf.name, doc_id) for leaf in run.leaves.values() for doc_id in leaf.doc_ids]


def gather(
    folder: Path, run: scored.Scored, plan: Plan, encoder: Encoder, chosen: list[Name]
) -> list[Drawn]:
    """Return the chosen samples with their prompts, as rows of token ids, and their answers."""
    assert run.record is not None, "an audit is of a record"
    drawn = {name: Drawn(name) for name in chosen}
    batches = _batches(plan, drawn)
    done = journal.of_record(folder, run.record, plan.entries)
    terms = recorded_terms(run.record, plan.body["settings"])
    for document in run.read():
        name = (document.leaf, document.doc_id)
        if name in drawn:
            drawn[name].rows = _rows(document, plan, batches[name], encoder, terms)
    for sample_batches in batches.values():
        for batch in sample_batches:
            for part, answer in done.batches[batch].answers().items():
                if (name := _sample_of(part)) in drawn:
                    drawn[name].answers[part] = answer
    _compare(plan, batches, drawn)
    return list(drawn.values())


def _sample_of(part: str) -> Name:
    leaf, doc_id, _, _ = part.rsplit("/", 3)
    return leaf, int(doc_id)


def _batches(plan: Plan, drawn: dict[Name, Drawn]) -> dict[Name, list[str]]:
    batches: dict[Name, list[str]] = {name: [] for name in drawn}
    for batch, entry in plan.entries.items():
        for name in {(entry["task"], int(t[4].split("/")[0])) for t in entry["targets"]}:
            if name in batches:
                batches[name].append(batch)
    missing = [name for name, names in batches.items() if not names]
    if missing:
        raise EvalkitError(f"the plan asks nothing of {missing[0][0]} document {missing[0][1]}")
    return batches


def _rows(
    document: Document, plan: Plan, batches: list[str], encoder: Encoder, terms: Terms
) -> dict[str, Row]:
    kind = plan.entries[batches[0]]["kind"]
    requests = []
    for index, argument in enumerate(document.first["arguments"].values()):
        for repeat in range(len(document.first["resps"][index])):
            where = (document.leaf, document.doc_id, index, repeat)
            context, second = argument["arg_0"], argument.get("arg_1", "")
            if kind == "generate_until":
                settings = settings_from(second, task=document.leaf, terms=terms)
                reserved = new_tokens(second)
                request = Request(*where, kind, context, settings=settings, reserved=reserved)
            else:
                request = Request(*where, kind, context, second)
            requests.append(request)
    return {
        f"{document.leaf}/{target.local_id}": Row(row.tokens, (target,))
        for row in tokenise(requests, encoder).rows
        for target in row.targets
    }


def _compare(plan: Plan, batches: dict[Name, list[str]], drawn: dict[Name, Drawn]) -> None:
    """Note where the rows are not the plan's, and where rows and answers don't belong together."""
    for sample_batches in batches.values():
        for batch in map(plan.batch, dict.fromkeys(sample_batches)):
            for target in batch.targets:
                sample = drawn.get(_sample_of(target.id))
                if sample is not None and not _same(sample.rows.get(target.id), batch, target):
                    sample.problems.append(f"{target.id}: the plan asks another prompt")
    for sample in drawn.values():
        for part in sorted(sample.rows.keys() ^ sample.answers.keys()):
            sample.problems.append(f"{part}: asked or answered, but not both")


def _same(row: Row | None, batch: Batch, target: BatchTarget) -> bool:
    if row is None:
        return False
    (rebuilt,) = row.targets
    return (
        [int(token) for token in row.tokens] == batch.tokens_of(target)
        and (rebuilt.start, rebuilt.last) == (target.start, target.last)
        and rebuilt.request.settings == batch.settings
    )


def tokens_of(answer: Answer) -> list[int] | None:
    """Return a generated answer's tokens, or None where its engine does not record them."""
    tokens = answer["tokens"] if "text" in answer else None
    return tokens if isinstance(tokens, list) else None

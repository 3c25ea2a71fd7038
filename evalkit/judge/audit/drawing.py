"""Which samples an audit looks at, and what was asked and answered in them, from the record's own
files.

The draw follows from the record's digest and a seed, so that anyone can repeat it and the author
could not foresee it if the seed came later. Prompts are tokenised again from the samples' texts
and must be the plan's: what is replayed is what the record says was asked.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.plan.batch import Batch, BatchTarget
from evalkit.plan.requests.request import Request, Terms, new_tokens, recorded_terms, settings_from
from evalkit.plan.store import Plan
from evalkit.plan.tokenise import Encoder, Row, tokenise
from evalkit.record import journal
from evalkit.record.journal import Answer
from evalkit.record.reading import scored
from evalkit.record.reading.evidence.samples import Document

Name = tuple[str, int]  # leaf task and doc_id


@dataclass(slots=True)
class Drawn:
    """A drawn sample: its requests' rows by part id, the recorded answers, and what is wrong so
    far."""

    name: Name
    rows: dict[str, Row] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def draw(names: Iterable[Name], record: str, seed: int, count: int) -> list[Name]:
    """`count` of the samples: those whose sha256 with the record's digest and seed is lowest."""

    def key(name: Name) -> bytes:
        return hashlib.sha256(f"{record}/{seed}/{name[0]}/{name[1]}".encode()).digest()

    return sorted(sorted(names, key=key)[:count])


def names(run: scored.Scored) -> list[Name]:
    """Every sample of a run."""
    return [(leaf.name, doc_id) for leaf in run.leaves.values() for doc_id in leaf.doc_ids]


def gather(
    folder: Path, run: scored.Scored, plan: Plan, encoder: Encoder, chosen: list[Name]
) -> list[Drawn]:
    """The chosen samples with what was asked, as rows of token ids, and answered."""
    assert run.record is not None, "an audit is of a record"
    found = {name: Drawn(name) for name in chosen}
    batches = _batches(plan, found)
    done = journal.of_record(folder, run.record, plan.entries)
    terms = recorded_terms(run.record, plan.body["settings"])
    for document in run.read():
        name = (document.leaf, document.doc_id)
        if name in found:
            _tokenise(document, plan, batches[name], encoder, terms, found[name])
    for names in batches.values():
        for batch in names:
            answers = done.batches[batch].answers()
            for part, answer in answers.items():
                leaf, doc_id, _, _ = part.rsplit("/", 3)
                if (leaf, int(doc_id)) in found:
                    found[leaf, int(doc_id)].answers[part] = answer
    _compare(plan, batches, found)
    return list(found.values())


def _batches(plan: Plan, found: dict[Name, Drawn]) -> dict[Name, list[str]]:
    """The batches in which each sample's requests stand."""
    batches: dict[Name, list[str]] = {name: [] for name in found}
    for batch, entry in plan.entries.items():
        for name in {(entry["task"], int(t[4].split("/")[0])) for t in entry["targets"]}:
            if name in batches:
                batches[name].append(batch)
    missing = [name for name, names in batches.items() if not names]
    if missing:
        raise EvalkitError(f"the plan asks nothing of {missing[0][0]} document {missing[0][1]}")
    return batches


def _tokenise(
    document: Document, plan: Plan, batches: list[str], encoder: Encoder, terms: Terms, drawn: Drawn
) -> None:
    """The sample's requests, from its texts."""
    kind = plan.entries[batches[0]]["kind"]
    requests = []
    for index, argument in enumerate(document.first["arguments"].values()):
        for repeat in range(len(document.first["resps"][index])):
            where = (document.leaf, document.doc_id, index, repeat)
            context, second = argument["arg_0"], argument.get("arg_1", "")
            if kind == "generate_until":
                settings = settings_from(second, task=document.leaf, terms=terms)
                asked = new_tokens(second)
                requests.append(Request(*where, kind, context, settings=settings, reserved=asked))
            else:
                requests.append(Request(*where, kind, context, second))
    for row in tokenise(requests, encoder).rows:
        for target in row.targets:
            drawn.rows[f"{document.leaf}/{target.local_id}"] = Row(row.tokens, (target,))


def _compare(plan: Plan, batches: dict[Name, list[str]], found: dict[Name, Drawn]) -> None:
    """Hold the rows against the plan's, and the answers against the rows."""
    for names in batches.values():
        for batch in map(plan.batch, dict.fromkeys(names)):
            for target in batch.targets:
                leaf, doc_id, _, _ = target.id.rsplit("/", 3)
                drawn = found.get((leaf, int(doc_id)))
                if drawn is not None and not _same(drawn.rows.get(target.id), batch, target):
                    drawn.problems.append(f"{target.id}: the plan asks another prompt")
    for drawn in found.values():
        for part in sorted(drawn.rows.keys() ^ drawn.answers.keys()):
            drawn.problems.append(f"{part}: asked or answered, but not both")


def _same(row: Row | None, batch: Batch, target: BatchTarget) -> bool:
    if row is None:
        return False
    (mine,) = row.targets
    tokens = [int(token) for token in row.tokens]
    return (
        tokens == batch.tokens_of(target)
        and (mine.start, mine.last) == (target.start, target.last)
        and mine.request.settings == batch.settings
    )


def digest(folder: Path) -> str:
    """sha256 of a record.json."""
    return canon.sha256_file(folder / "record.json")


def answered(answer: Any) -> list[int] | None:
    """A generated answer's tokens; None where its engine does not tell them."""
    tokens = answer["tokens"]
    return tokens if isinstance(tokens, list) else None

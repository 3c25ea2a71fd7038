"""Some whole batches of the original's plan, answered again.

Such a sample can still be equal to the last bit, because a batch is a pure function. The batches
are planned here again, from the reader's suite: the record's own plan says which ones it means by
its id, and never what they hold.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.events import Events
from evalkit.inputs.models.model import Model
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.judge.audit import drawing, loading, replaying
from evalkit.judge.audit.loading import Asked
from evalkit.judge.audit.noise import measure
from evalkit.judge.reproduce.answers import Apart, apart
from evalkit.judge.reproduce.verdicts import Verdict
from evalkit.plan import store
from evalkit.record import journal
from evalkit.run import evaluate
from evalkit.run.preparing.prepare import Job


@contextmanager
def planned_here(job: Job, events: Events) -> Iterator[store.Plan]:
    """The plan of a job, built from its suite, until the block ends."""
    _, made = evaluate.batches(job, Tokenizer(job.model), events)
    with tempfile.TemporaryDirectory(prefix="evalkit-planned-") as place:
        canon.write_atomic(Path(place) / "plan.tokens", made.tokens)
        canon.write_json(Path(place) / "plan.json", made.body)
        yield store.Plan(Path(place))


def again(
    folder: Path, record: dict[str, Any], planned: store.Plan, model: Model, asked: Asked,
    events: Events, seed: int,
) -> tuple[Verdict, Apart, int]:  # fmt: skip
    """Answer `asked.samples` batches again; the verdict, how far the answers are apart, and how
    many batches there are. Texts and choices are not scored, so that there is no ANSWERS and no
    REPRODUCED here."""
    engine, _ = loading.engine_for(record, model, planned, asked)
    done = journal.of_record(folder, record, planned.entries)
    digest = drawing.digest(folder)
    names = [(batch, 0) for batch in planned.entries]
    chosen = [batch for batch, _ in drawing.draw(names, digest, seed, asked.samples)]
    pairs: list[tuple[str, Any, Any]] = []
    with events.phase("reproduce", len(chosen), "batches") as phase:
        for batch in chosen:
            before = done.batches[batch].answers()
            after = engine.execute(planned.batch(batch))
            pairs += [(part, before.get(part), answer) for part, answer in after.items()]
            phase.advance(1)
    found = apart(pairs, measure([]))
    if not found.unequal:
        return Verdict.BITWISE, found, len(planned)
    found = apart(pairs, replaying.noise_of(folder, model, asked))
    return (Verdict.DIFFERENT if found.beyond else Verdict.NUMERICS), found, len(planned)

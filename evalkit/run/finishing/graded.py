"""A run whose answers are programs: which they are, and the verdicts that it is scored by.

Nothing runs here: `host.grading` runs programs in an image and leaves verdicts in the run's folder.
"""

import sys
from collections.abc import Iterator
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import verdicts
from evalkit.harness.samples import Sample
from evalkit.harness.tasks import Loaded
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.store import Plan
from evalkit.record import journal, record
from evalkit.record.journal import Answers
from evalkit.run.folder import Run

GRADING = "grading.json"  # how a run's programs were run


def write_samples(
    run: Run, samples: Iterator[Sample], known: verdicts.Verdicts
) -> record.SampleFacts:
    """Score and write the samples; EvalkitError (75) where a program has no verdict."""
    with verdicts.judged(known) as asked:
        facts = record.write_samples(run.folder / "samples.jsonl.gz", samples)
    if missing := asked.keys() - known.keys():
        raise _ungraded(run, len(missing))
    return facts


def programs_of(run: Run, loaded: Loaded, tokenizer: Tokenizer) -> dict[str, str]:
    """The programs that a run's answers are, by name, as scoring will ask for their verdicts."""
    from evalkit.harness.scoring import score

    plan = Plan(run.folder)
    done = journal.read(run.folder / "journal", run.body["ids"]["run"], plan.entries)
    template = tokenizer.chat_template_for(loaded.suite)
    with verdicts.judged({}) as asked:
        for _ in score.Scoring(loaded, Answers(plan, done).of, template).samples():
            pass
    return dict(asked)


def needed(run: Run, loaded: Loaded) -> verdicts.Verdicts:
    """The verdicts that a run is scored by; EvalkitError (75) where it needs some and has none."""
    found = verdicts.read(run.folder)
    graded = [name for name, leaf in loaded.leaves.items() if verdicts.is_graded(leaf.task)]
    if graded and not found:
        most = loaded.suite.limit or sys.maxsize
        counts = (loaded.leaves[name].locked.documents for name in graded)
        raise _ungraded(run, sum(min(most, count) for count in counts))
    return found


def _ungraded(run: Run, count: int) -> EvalkitError:
    return EvalkitError(
        f"the answers to {count} documents are programs without a verdict; none runs on this host",
        where=str(run.folder),
        fix="`evalkit grade RUN` runs them in the image, without network or writable files, and"
        " writes the record",
        code=Exit.STOPPED,
    )


def described(run: Run) -> dict[str, Any] | None:
    """The record's word of how programs were run, and how many passed."""
    if not (run.folder / GRADING).is_file():
        return None
    found = list(verdicts.read(run.folder).values())
    counts = {"programs": len(found), "passed": found.count("passed")}
    return dict(canon.read_json(run.folder / GRADING)) | counts

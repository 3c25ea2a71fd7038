"""A run whose answers are programs: the programs, and the verdicts that score them.

Nothing runs here: `host.grading` runs the programs in an image and writes verdicts to the run's
folder.
"""

import sys
from collections.abc import Iterator

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness import verdicts
from evalkit.harness.samples import Sample
from evalkit.harness.tasks import Loaded
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.record import journal, record
from evalkit.record.journal import Answers
from evalkit.record.sections import Graded, Grading
from evalkit.run.folder import Run, plan_of

GRADING = "grading.json"  # how the programs of a run were executed


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
    """Return the programs among a run's answers by name, as scoring looks up their verdicts."""
    from evalkit.harness.scoring import score

    plan = plan_of(run.folder)
    done = journal.read(run.folder / "journal", run.body["ids"]["run"], plan.entries)
    template = tokenizer.chat_template_for(loaded.suite)
    with verdicts.judged({}) as asked:
        for _ in score.Scoring(loaded, Answers(plan, done).of, template).samples():
            pass
    return dict(asked)


def needed(run: Run, loaded: Loaded) -> verdicts.Verdicts:
    """Return the verdicts for a run; EvalkitError (75) where it needs some and has none."""
    found = verdicts.read(run.folder)
    graded = [name for name, leaf in loaded.leaves.items() if verdicts.is_graded(leaf.task)]
    if graded and not found:
        most = loaded.suite.limit or sys.maxsize
        counts = (loaded.leaves[name].locked["documents"] for name in graded)
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


def described(run: Run) -> Graded | None:
    """Return the record's section on graded programs; None where none were graded."""
    if not (run.folder / GRADING).is_file():
        return None
    outcomes = list(verdicts.read(run.folder).values())
    grading: Grading = canon.read_json(run.folder / GRADING)
    return {**grading, "programs": len(outcomes), "passed": outcomes.count("passed")}

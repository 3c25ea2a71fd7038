"""`evalkit grade RUN`: runs the programs that a run's answers are, each in a container of its own,
and writes the record; or, for a graded run, runs them again and holds the verdicts against its own.

No program ever runs on the host. Verdicts are on the disk as they come, so a stopped grading goes
on where it was.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.harness.programs import verdicts
from evalkit.host import sandbox
from evalkit.host.launch import runtimes
from evalkit.host.launch.runtimes import Place
from evalkit.host.sandbox import Limits
from evalkit.record.reading.evidence.samples import NAME as SAMPLES
from evalkit.record.reading.folder import Folder
from evalkit.run import evaluate, folder
from evalkit.run.finishing import graded

AT_ONCE = 4  # containers


def grade(
    where: Path, events: Events, argv: list[str], *,
    wanted: str, image: str, limits: Limits, suite: str | None, model: str | None, offline: bool,
) -> Path:  # fmt: skip
    """Grade a run whose batches are all answered and write its record; the run's folder.

    EvalkitError (3) where there is no image to run programs in; (1) where a graded run's programs
    have other verdicts now.
    """
    place = runtimes.choose(wanted, image)
    if place.runtime is None or place.image is None:
        raise EvalkitError(
            f"programs are run in the image only, and this would run {place.words}",
            fix="make the image (`make image`, `make sif`), or grade where there is one",
            code=Exit.MISSING,
        )
    run = folder.read(where)
    if run.finished:
        _repeat(where, place, limits, events)
        return where

    def see_to(at: Path, programs: dict[str, str]) -> None:
        _run_all(at, place, limits, programs, verdicts.read(at), events)
        canon.write_json(at / graded.GRADING, _described(place, limits))

    return evaluate.finish_only(
        where, events, argv, suite=suite, model=model, offline=offline, prefer=None, grade=see_to
    )


def _described(place: Place, limits: Limits) -> dict[str, Any]:
    """What the record says of how programs were run."""
    assert place.runtime is not None and place.image is not None, "it was chosen"
    return {
        "image": place.image.digest,
        "runtime": f"{place.runtime.name} {place.runtime.version}",
        "limits": asdict(limits),
    }


def _run_all(
    where: Path, place: Place, limits: Limits, programs: dict[str, str],
    known: verdicts.Verdicts, events: Events,
) -> None:  # fmt: skip
    """Run the programs that have no verdict yet; each verdict is on the disk before the next."""
    todo = sorted(programs.keys() - known.keys())
    lines = canon.Appender(where / verdicts.NAME)
    try:
        with events.phase("grade", len(todo), "programs") as phase:
            for name, outcome in _outcomes(place, limits, programs, todo):
                lines.append(verdicts.line(name, outcome))
                phase.advance(1)
    finally:
        lines.close()


def _outcomes(
    place: Place, limits: Limits, programs: dict[str, str], todo: list[str]
) -> Iterable[tuple[str, str]]:
    assert place.runtime is not None and place.image is not None, "it was chosen"
    one = partial(sandbox.run, place.runtime, place.image, limits=limits)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(todo, pool.map(lambda name: one(programs[name]), todo), strict=True)


def _repeat(where: Path, place: Place, limits: Limits, events: Events) -> None:
    """Run a graded record's programs again; EvalkitError (1) that names what comes out otherwise.

    They are made from the samples alone, so nothing of the suite or the model is needed.
    """
    said = verdicts.read(where)
    if not said:
        raise EvalkitError("no answer of this run is a program", where=str(where))
    programs: dict[str, str] = {}
    for _, raw in Folder(where).gzip_lines(SAMPLES):
        for text in verdicts.of_sample(canon.loads(raw)):
            name = verdicts.name_of(text)
            programs |= {name: text} if name in said else {}
    with events.phase("grade", len(said), "programs") as phase:
        unlike = []
        for name, outcome in _outcomes(place, limits, programs, sorted(programs)):
            unlike += [] if outcome == said[name] else [f"{name[:12]} {said[name]} -> {outcome}"]
            phase.advance(1)
    missing = len(said) - len(programs)
    if unlike or missing:
        raise EvalkitError(
            f"{len(unlike)} of {len(said)} verdicts come out otherwise, {missing} are of no sample:"
            f" {', '.join(unlike[:3])}",
            where=str(where), code=Exit.FAILED,
        )  # fmt: skip
    assert place.image is not None, "it was chosen"
    events.say(
        f"{len(said):,} programs run again in image {place.image.digest[:19]}: no verdict differs"
    )

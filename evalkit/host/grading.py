"""`evalkit grade RUN`: runs the programs in a run's answers, each in a container of its own, and
writes the record. For a graded run it runs them again and compares the verdicts.

No program ever runs on the host. Each verdict is written at once, so a stopped grading continues
where it was.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.events import Events
from evalkit.harness import verdicts
from evalkit.host import sandbox
from evalkit.host.launch import runtimes
from evalkit.host.launch.runtimes import Place
from evalkit.host.sandbox import Limits
from evalkit.record.reading.evidence.samples import NAME as SAMPLES
from evalkit.record.reading.folder import Folder, foreign
from evalkit.run import evaluate, folder
from evalkit.run.finishing import graded

AT_ONCE = 4  # containers


def grade(
    where: Path, events: Events, argv: list[str], *,
    wanted: str, image: str, limits: Limits, suite: str | None, model: str | None, offline: bool,
) -> Path:  # fmt: skip
    """Grade a completely answered run, write its record and return the run's folder. EvalkitError
    (3) where there is no image to run programs in; (1) where the programs of a graded run have
    other verdicts now."""
    place = runtimes.choose(wanted, image)
    if place.runtime is None or place.image is None:
        raise EvalkitError(
            f"programs are run in the image only, and this would run {place.words}",
            fix="make the image (`make image`, `make sif`), or grade where there is one",
            code=Exit.MISSING,
        )
    if folder.read(where).finished:
        _repeat(where, place, limits, events)
        return where

    def run_programs(at: Path, programs: dict[str, str]) -> None:
        _run_all(at, place, limits, programs, verdicts.read(at), events)
        canon.write_json(at / graded.GRADING, _described(place, limits))

    return evaluate.finish_only(
        where,
        events,
        argv,
        suite=suite,
        model=model,
        offline=offline,
        prefer=None,
        grade=run_programs,
    )


def _described(place: Place, limits: Limits) -> dict[str, object]:
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
    """Run the programs that have no verdict yet; write each verdict before the next."""
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


def _programs(where: Path, recorded: verdicts.Verdicts) -> dict[str, str]:
    """Return the programs in a run's samples that have a recorded verdict, by name."""
    programs: dict[str, str] = {}
    for _, raw in Folder(where).gzip_lines(SAMPLES):
        for text in verdicts.of_sample(canon.loads(raw)):
            name = verdicts.name_of(text)
            programs |= {name: text} if name in recorded else {}
    return programs


def _repeat(where: Path, place: Place, limits: Limits, events: Events) -> None:
    """Run a graded record's programs again; EvalkitError (1) names changed verdicts."""
    recorded = verdicts.read(where)
    if not recorded:
        raise EvalkitError("no answer of this run is a program", where=str(where))
    with foreign(where):
        programs = _programs(where, recorded)
    with events.phase("grade", len(recorded), "programs") as phase:
        unlike = []
        for name, outcome in _outcomes(place, limits, programs, sorted(programs)):
            if outcome != recorded[name]:
                unlike.append(f"{name[:12]} {recorded[name]} -> {outcome}")
            phase.advance(1)
    missing = len(recorded) - len(programs)
    if unlike or missing:
        raise EvalkitError(
            f"{len(unlike)} of {len(recorded)} verdicts come out otherwise, {missing} are of no"
            f" sample: {', '.join(unlike[:3])}",
            where=str(where), code=Exit.FAILED,
        )  # fmt: skip
    assert place.image is not None, "it was chosen"
    events.say(
        f"{len(recorded):,} programs run again in image {place.image.digest[:19]}: no verdict"
        " differs"
    )

"""Whatever is changed in a finished, signed run is caught by what docs/tamper.md says.

A share of the changes is made by default, all of them by `make test-trust`; `make test-trust-full`
fuzzes more records and writes the table.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import forgeries
import pages
import pytest
import resealed
import runs
import tamper
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs import Run
from tamper import JOURNAL, NOBODY, SIGNATURE, Change, caught, failed

from evalkit.base.errors import Exit
from evalkit.harness.scoring import rescore
from evalkit.judge.verify import Trust, Wanted, verify
from evalkit.judge.verify.checks import completeness
from evalkit.record.signing import attest, keys

PAGE = Path(__file__).parents[1] / "docs" / "tamper.md"
FUZZ = Path(__file__).parent / "fuzz.py"
WRITING = bool(os.environ.get("EVALKIT_WRITE_TABLE"))
SAMPLES = "samples.jsonl.gz"
SCORED = (SAMPLES, "results.json")  # what only lm-eval knows all of
NAMES = ("plan.json", JOURNAL, SAMPLES, "results.json", "lock.yaml", "lock.rows", "events/a.jsonl")
AUTHOR = "CONSISTENT: nothing in it contradicts itself; only its author saw it"
LIGHT = f"{AUTHOR}; 1 tasks' samples are not scored again here"  # without lm-eval
SAID = "the last line"
Tell = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The small run's suite, as if evalkit shipped it."""
    folder, run = tmp_path_factory.mktemp("suites"), Run()
    suite = {"name": "tiny", "tasks": [task["task"] for task in run.suite["tasks"]]}
    (folder / "tiny.lock.yaml").write_text(yaml.safe_dump(run.lock))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(completeness, "SUITES", [folder])
        yield


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval, which takes most of the time: what it alone notices is in the stories."""
    monkeypatch.setattr(rescore, "installed", lambda: None)


@pytest.fixture(scope="module")
def key() -> keys.Private:
    """The author's."""
    return keys.Private(Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: keys.Private) -> Path:
    """A finished, signed run."""
    folder = Run().write(tmp_path_factory.mktemp("signed") / "run")
    attest.sign(folder, key)
    return folder


@pytest.fixture(scope="module")
def tell() -> Iterator[Tell]:
    """Takes down a change, its form and what caught it; the page must say the same."""
    rows: Counter[tuple[str, str, str]] = Counter()
    yield lambda *row: rows.update([row])  # type: ignore[misc]
    made = {row: f"| {' | '.join(row)} | {times} |" for row, times in rows.items()}
    written = {tuple(row): line for row, line in pages.rows(PAGE, 3).items()}
    if WRITING:
        tried = {row[:2] for row in made}  # what caught them before may be another thing now
        table = {row: line for row, line in written.items() if row[:2] not in tried} | made
        pages.write(PAGE, (table[row] for row in sorted(table)))
    else:
        assert set(made) <= set(written), f"not in {PAGE.name}: {set(made) - set(written)}"


def share(changes: Iterable[Change], every: int) -> Iterator[Change]:
    """One in `every`, evenly."""
    return (change for number, change in enumerate(changes) if number % every == 0)


def sweep(
    signed: Path, key: keys.Private, place: Path, changes: Iterable[Change], form: str, tell: Tell
) -> int:
    """Make each change to a copy of the run and hold what verify says against what it may say."""
    wanted, made = Wanted(Trust({key.public: "alice"}, asked=True)), list(changes)
    for change in made:
        folder = tamper.copied(signed, place / "run")
        change.make(folder)
        if form == "careful" and _same(folder, signed):
            continue  # an id that was put right again
        report = verify(folder, wanted)
        assert report.exit_code is not Exit.OK, f"{change.what}, {form}: {report.verdict}"
        how = caught(report)
        if form == "careful" or change.what.startswith("record.json"):
            noticed = SIGNATURE in failed(report) or "record" in failed(report)
            assert noticed, f"{change.what}: the signature holds"
        if how == NOBODY:
            (folder / "attestation.json").unlink()
            assert verify(folder).verdict in (AUTHOR, LIGHT), change.what
        tell(change.what, form, how)
    return len(made)


def _same(one: Path, two: Path) -> bool:
    return (one / "record.json").read_bytes() == (two / "record.json").read_bytes()


def careful_record(folder: Path) -> Iterator[Change]:
    """Every field of the record, and the ids that follow from it."""
    for change in tamper.fields(folder, "record.json", 2, careful=False):
        yield Change(change.what, lambda place, make=change.make: _identified(place, make))


def _identified(folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    record = runs.read_record(folder)
    asked = {k: v for k, v in record["suite"].items() if k not in ("name", "partial")}
    record["ids"] |= {"suite": runs.digest(asked), "answers": runs.digest(record["answers"])}
    with suppress(TypeError):  # no adapter, say, by a text
        record["ids"]["run"] = runs.run_id(record)
    runs.write_record(folder, record)


def everything(signed: Path, other: Path) -> dict[str, list[Change]]:
    """All changes by their form."""
    record = tamper.fields(signed, "record.json", 2, careful=False)
    alone = [change for change in record if change.what.startswith("record.json: ids")]
    careful = list(careful_record(signed))
    for name in NAMES:
        alone += tamper.fields(signed, name, 0, careful=False)
        if name not in SCORED:
            careful += tamper.fields(signed, name, 1, careful=True)
    alone += tamper.blocks(signed, careful=False)
    careful += tamper.blocks(signed, careful=True)
    alone += tamper.files(signed, other, careful=False)
    careful += tamper.files(signed, other, careful=True)
    return {"alone": alone, "careful": careful}


@pytest.mark.usefixtures("shipped", "alone")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [193, pytest.param(1, marks=pytest.mark.trust)])
def test_every_change_of_every_field_and_file_is_caught_by_what_the_table_says(
    every: int, signed: Path, key: keys.Private, tmp_path: Path, tell: Tell
) -> None:
    other = Run(limit=2).write(tmp_path / "other")
    count = 0
    for form, changes in everything(signed, other).items():
        count += sweep(signed, key, tmp_path, share(changes, every), form, tell)
    assert count * every > 1900


@pytest.mark.usefixtures("shipped")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [193, pytest.param(1, marks=pytest.mark.trust)])
def test_every_change_of_what_lm_eval_says_is_caught_by_what_the_table_says(
    every: int, signed: Path, key: keys.Private, tmp_path: Path, tell: Tell
) -> None:
    if rescore.installed() is None:
        pytest.skip("lm-eval isn't installed")
    count = 0
    for name in SCORED:
        changes = share(tamper.fields(signed, name, 1, careful=True), every)
        count += sweep(signed, key, tmp_path, changes, "careful", tell)
    assert count * every > 500


@pytest.mark.usefixtures("shipped", "alone")
def test_every_field_of_the_attestation_is_the_signatures(signed: Path, tmp_path: Path) -> None:
    for change in tamper.fields(signed, "attestation.json", 5, careful=False):
        folder = tamper.copied(signed, tmp_path / "run")
        change.make(folder)
        report = verify(folder)
        if "keyid" in change.what:  # a hint: other tools make it otherwise
            assert failed(report) == set()
            continue
        assert failed(report) == {SIGNATURE} and report.verdict.startswith("BROKEN"), change.what


@pytest.mark.usefixtures("shipped", "alone")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [59, pytest.param(1, marks=pytest.mark.trust)])
def test_an_edit_that_all_else_was_made_to_follow_is_caught_said_or_inherent(
    every: int, tmp_path: Path, tell: Tell
) -> None:
    """Nothing is missed: what no other field speaks against is the author's word, and named so."""
    counts: Counter[str] = Counter()
    for number, (what, make) in enumerate(resealed.edits()):
        if number % every:
            continue
        folder = make().write(tmp_path / str(number))
        report = verify(folder)
        how = caught(report)
        if how == NOBODY and report.verdict != LIGHT:
            how = SAID
        elif how == NOBODY:
            assert what in resealed.INHERENT, f"missed: {what} {make.__defaults__}"  # type: ignore[attr-defined]
            how = "inherent"
        shutil.rmtree(folder)
        counts[how if how in (SAID, "inherent") else "caught"] += 1
        tell(what, "re-sealed", how)
    if WRITING and every == 1:
        total = f"{counts.total():,} re-sealed edits: {counts['caught']:,} caught, {counts[SAID]:,}"
        told = f"{total} said in the last line, {counts['inherent']:,} inherent, 0 missed."
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"(?m)^[0-9,]+ re-sealed edits: .*$", told, page))


# stories

STORIES: dict[str, tuple[Callable[[], Run], str]] = {
    "a score raised, with its sample, aggregates and digests": (
        lambda: tamper.raised("acc"),
        "recomputation",
    ),
    "a generation's score raised likewise": (
        lambda: tamper.raised("exact_match"),
        "recomputation",
    ),
    "a score raised, and a config that says its own code did it": (
        tamper.own_config,
        "recomputation",
    ),
    "wrong documents left out, with a lock to match": (tamper.thinned, "shipped lock"),
    "right answers edited to those given, with rows and lock": (tamper.other_gold, "shipped lock"),
    "answers of another model": (tamper.another_model, "audit"),
    "wrong answers made right in the journal and all that follows": (tamper.improved, "audit"),
    "other numerics claimed, with the run id in every line": (tamper.other_numerics, "audit"),
}


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("what", STORIES)
def test_a_story_that_agrees_with_itself_is_caught_by_what_the_table_says(
    what: str, tmp_path: Path, tell: Tell
) -> None:
    if rescore.installed() is None:
        pytest.skip("lm-eval isn't installed")
    tellable, expected = STORIES[what]
    report = verify(tellable().write(tmp_path / "run"))
    how = caught(report)
    if expected == "audit":
        assert (how, report.verdict) == (NOBODY, AUTHOR)
    else:
        assert how == expected, report.lines()
    tell(what, "a story", expected)


@pytest.mark.usefixtures("shipped", "alone")
@pytest.mark.parametrize("what", forgeries.LOCKED)
def test_what_the_lock_pins_is_refused_without_lm_eval(
    what: str, tmp_path: Path, tell: Tell
) -> None:
    """Each agreed with itself, and was CONSISTENT."""
    report = verify(forgeries.LOCKED[what]().write(tmp_path / "run"))
    caught_by = {"a group's score without its tasks' sizes": "recomputation"}
    assert caught(report) == caught_by.get(what, "shipped lock"), report.lines()
    assert failed(report) <= {"asked", "scoring", "completeness", "rows", "aggregates", "shots"}
    tell(what, "a story", caught(report))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", forgeries.CONTRADICTIONS)
def test_what_no_honest_run_can_say_is_broken_without_a_model_or_a_lock(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    """Each agreed with itself as far as it was looked at, and was CONSISTENT."""
    monkeypatch.setattr(completeness, "SUITES", [])
    report = verify(forgeries.CONTRADICTIONS[what]().write(tmp_path / "run"))
    assert report.verdict.startswith("BROKEN"), report.lines()
    tell(what, "a story", caught(report))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", forgeries.LOCKED)
def test_a_suite_of_the_authors_own_is_held_against_its_lock_likewise(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completeness, "SUITES", [])
    report = verify(forgeries.LOCKED[what]().write(tmp_path / "run"))
    assert report.verdict.startswith("BROKEN"), report.lines()
    honest = verify(Run().write(tmp_path / "honest"))
    assert honest.verdict == LIGHT.replace("; 1", f"; {completeness.AUTHORS_WORD}; 1")


@pytest.mark.usefixtures("shipped", "alone")
def test_a_replayed_signature_and_another_signer_are_caught_by_the_signature(
    signed: Path, key: keys.Private, tmp_path: Path, tell: Tell
) -> None:
    """The author's statement put beside another record; and the record signed anew by a forger."""
    trusted = Wanted(Trust({key.public: "alice"}, asked=True))
    other = tamper.another_model().write(tmp_path / "other")
    (other / "attestation.json").write_bytes((signed / "attestation.json").read_bytes())
    assert failed(verify(other)) == {SIGNATURE}
    tell("a signature of another record", "a story", SIGNATURE)
    (other / "attestation.json").unlink()
    forger = keys.Private(Ed25519PrivateKey.generate())
    attest.sign(other, forger)
    same = {"answers": runs.read_record(other)["ids"]["answers"], "record": "1" * 64}
    attest.sign(other, forger, attest.REPRODUCTION, {"verdict": "BITWISE", **same})
    report = verify(other, trusted)
    assert failed(report) == {"signer"} and report.verdict.startswith("UNMET")
    assert verify(other).verdict.startswith("CONSISTENT") and "SIGNED" not in verify(other).verdict
    tell("a forger's own signature, and his own reproduction", "a story", SIGNATURE)


# records that mean harm


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(4_000, marks=[pytest.mark.trust, pytest.mark.timeout(1200)]),
        pytest.param(20_000, marks=[pytest.mark.trust_full, pytest.mark.timeout(3600)]),
    ],
)
def test_records_changed_at_random_end_in_a_verdict_and_nothing_else(
    count: int, tmp_path: Path
) -> None:
    """Both tiers have cases of their own, which are the same each time. None are in the default
    tests: to import and make what eight cases need takes three seconds."""
    command = [sys.executable, os.fspath(FUZZ), str(100_000 * count), str(count), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    print(told)
    assert told["cases"] == sum(told["verdicts"].values()) == count
    assert told["peak"] < 1 << 30

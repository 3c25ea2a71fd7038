"""`reproduce`: its ladder of verdicts, what differs, the likely cause, the demo reproduced."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import forged
import pytest
import support
from support import call

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.judge.audit.noise import Noise
from evalkit.judge.compare import compare
from evalkit.judge.reproduce import Wanted, differences, prepared, verdicts
from evalkit.judge.reproduce.command import obtained
from evalkit.judge.reproduce.differences import NOTHING, apart
from evalkit.judge.reproduce.preparing import options
from evalkit.judge.reproduce.verdicts import Verdict
from evalkit.record.packs import archive
from evalkit.record.reading.identity import inputs_of
from evalkit.record.signing import attest

EXAMPLE = next((support.ROOT / "results/example").glob("*/record.json")).parent
NOISE = Noise(0.01, 100)


def likelihood(value: float, tokens: int = 1) -> dict[str, Any]:
    return {"loglikelihood": value, "is_greedy": False, "num_tokens": tokens}


def text(tokens: list[int], margin: float = 1.0, logprob: float = -0.5) -> dict[str, Any]:
    count = len(tokens)
    return {
        "text": " ".join(map(str, tokens)), "tokens": tokens, "logprobs": [logprob] * count,
        "margins": [margin] * count, "stop": "length",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "beyond"),
    [
        (likelihood(-3.0), likelihood(-3.1), False),
        (likelihood(-3.0), likelihood(-3.2), True),
        (likelihood(-3.0, 4), likelihood(-3.2, 4), False),  # of four tokens: twice as far
        (likelihood(-3.0), likelihood(float("nan")), True),
        (text([1, 2, 3], 0.1), text([1, 5, 9], 0.1), False),  # parted at a near-tie
        (text([1, 2, 3], 0.1), text([1, 5, 9], 2.0), True),
        (text([1, 2, 3]), text([1, 2]), True),
        (text([1, 2, 3]), text([1, 2, 3], logprob=-0.55), False),
        (text([1, 2, 3]), text([1, 2, 3], logprob=-0.9), True),
        (text([1, 2, 3]), None, True),
    ],
)
def test_answers_are_apart_when_the_noise_does_not_explain_it(
    before: dict[str, Any], after: dict[str, Any] | None, beyond: bool
) -> None:
    found = apart([("t/0/0/0", before, after), ("t/1/0/0", before, before)], NOISE)
    assert (found.total, found.unequal, found.beyond) == (2, 1, int(beyond))
    assert bool(found.first) == beyond


def test_the_verdict_on_scores_needs_a_proof_in_either_direction() -> None:
    pair = compare([EXAMPLE, EXAMPLE]).pairs[0]
    tests = verdicts.equivalences(pair, {row.task: 0.03 for row in pair.tops})
    assert verdicts.of_scores(pair, tests) is Verdict.REPRODUCED  # equal: within any margin
    wide = [replace(test, p=0.2) for test in tests]
    assert verdicts.of_scores(pair, wide) is Verdict.INCONCLUSIVE
    (first, *rest) = pair.rows
    worse = replace(pair, rows=(replace(first, adjusted=0.001), *rest))
    assert verdicts.of_scores(worse, wide) is Verdict.DIFFERENT
    assert verdicts.of_scores(worse, tests) is Verdict.REPRODUCED  # a small, real difference
    unknown = [replace(test, p=None) for test in tests]
    assert verdicts.of_scores(pair, unknown) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("error", "margin"), [(None, 0.01), (0.001, 0.01), (0.02, 0.04), (0.2, 0.05)]
)
def test_the_margin_is_twice_the_originals_error_within_its_bounds(
    error: float | None, margin: float
) -> None:
    pair = compare([EXAMPLE, EXAMPLE]).pairs[0]
    tests = verdicts.equivalences(pair, {row.task: error for row in pair.tops})
    assert [test.margin for test in tests] == [pytest.approx(margin)] * 4


def test_the_first_difference_that_computes_is_the_cause() -> None:
    record = support.read(EXAMPLE)
    before = inputs_of(record)
    after = {**before, "numerics": {**before["numerics"], "threads": 8}}
    after["versions"] = {**before["versions"], "torch": "9.9"}
    found = differences.of_inputs(before, after)
    assert [each.name for each in found] == ["numerics.threads", "versions.torch"]
    environment = record["environment"]
    other = {**environment, "packages": {**environment["packages"], "pytest": "99", "numpy": "9"}}
    found += differences.of_environments(environment, other)
    assert [each.name for each in found][2:] == ["packages.numpy", "packages.pytest"]
    assert differences.cause(found).startswith("other numerics: numerics.threads")
    assert differences.cause(found[3:]) == NOTHING  # pytest answers nothing
    assert differences.cause(found[2:]).startswith("other software: packages.numpy")


def test_every_verdict_has_its_exit_code() -> None:
    codes = {verdict: int(verdict.exit_code) for verdict in Verdict}
    assert [codes[v] for v in Verdict] == [0, 0, 0, 0, 4, 1, 2]


def test_what_runs_code_is_never_taken_from_a_record(tmp_path: Path) -> None:
    """A record can say trust_remote_code; the reproducer has to."""
    record = support.read(EXAMPLE)
    record["command"]["config"] |= {"trust_remote_code": True, "allow_pickle": True}
    made = options(record, Wanted(tmp_path, {}), tmp_path)
    assert not made.trust_remote_code and not made.allow_pickle
    assert (made.threads, made.level, made.dtype) == (1, "tree", "float32")
    mine = Wanted(tmp_path, {"trust_remote_code": True})
    assert options(record, mine, tmp_path).trust_remote_code


def test_a_record_that_contradicts_itself_is_not_reproduced(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record = support.read(run)
    record["tasks"]["demo_qa"]["metrics"]["acc,none"]["value"] = 0.9
    support.write(run, record)
    with pytest.raises(EvalkitError, match="contradicts itself"):
        prepared(run, Wanted(tmp_path / "out", {}))


def test_a_pack_is_obtained_and_an_absent_run_is_not(tmp_path: Path) -> None:
    files = [("record.json", (EXAMPLE / "record.json").read_bytes())]
    pack = tmp_path / "run.tar.gz"
    canon.write_atomic(pack, archive.packed("demo-1", files))
    with obtained(str(pack)) as run:
        assert (run / "record.json").read_bytes() == files[0][1]
    with pytest.raises(EvalkitError), obtained(str(tmp_path / "absent")):
        pass
    for address in ("http://[x/y.tar.gz", "http://127.0.0.1:x/"):
        with pytest.raises(EvalkitError, match="can't fetch"), obtained(address):
            pass
    with pytest.raises(EvalkitError, match="can't fetch"), obtained("http://127.0.0.1:9/x.tar.gz"):
        pass


# Whole reproductions


def again(run: Path, out: Path, *more: str | Path) -> support.Ran:
    """The command, its batches answered in this process."""
    return call("reproduce", run, "--out", out, "--workers", "0", *more)


@pytest.mark.trust
def test_the_same_machine_again_is_bitwise_and_a_key_says_so(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    key = tmp_path / "key"
    call("sign", "--new-key", "--key", key).done()
    ran = again(run, tmp_path / "again", "--key", key).done()
    assert ran.out.splitlines()[-1] == "BITWISE: every answer is equal, to the last bit"
    (made,) = (tmp_path / "again" / "demo").glob("demo-*")
    assert support.read(made)["execution"] != support.read(run)["execution"]
    call("sign", run, "--new-key", "--key", tmp_path / "author").done()
    shown = call("verify", run, "--key", f"{key}.pub").done().out
    assert shown.splitlines()[-1].startswith("REPRODUCED by key; signed by a key that")
    assert (run / attest.NAME).is_file() and not (made / attest.NAME).exists()


@pytest.mark.trust
def test_a_plan_runs_nothing_and_says_what_differs(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    shown = again(run, tmp_path / "again", "--plan", "--threads", "2").done().out
    assert "differs   numerics.threads: 1 -> 2" in shown
    assert "to do     210 documents of 6 leaf tasks" in shown
    assert not list((tmp_path / "again").rglob("record.json"))


@pytest.mark.trust
def test_other_numerics_are_named_as_the_cause(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    ran = again(run, tmp_path / "again", "--dtype", "bfloat16")
    assert ran.out.splitlines()[-1].split()[0].rstrip(":") in ("ANSWERS", "NUMERICS", "REPRODUCED",
                                                              "INCONCLUSIVE")  # fmt: skip
    assert "cause     likely other numerics: numerics.dtype: float32 -> bfloat16" in ran.out


@pytest.mark.trust
def test_a_wrong_answer_in_the_original_is_never_bitwise(tmp_path: Path) -> None:
    def plant(request: str, answer: dict[str, Any]) -> None:
        if request == "demo_qa/3/1/0":
            answer |= {"loglikelihood": -1e-3, "is_greedy": True}

    run = forged.planted(tmp_path, plant)
    ran = again(run, tmp_path / "again")
    assert not ran.out.splitlines()[-1].startswith(("BITWISE", "NUMERICS"))
    assert "1 of 696 are not equal, 1 beyond the noise" in ran.out
    assert "demo_qa/3/1/0: log-likelihood off by" in ran.out
    assert f"likely {NOTHING}" in ran.out
    sampled = again(run, tmp_path / "sampled", "--sample", "8")
    assert sampled.code == 1
    assert sampled.out.splitlines()[-1].startswith("DIFFERENT")


@pytest.mark.trust
def test_a_sample_of_batches_can_be_bitwise(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    ran = again(run, tmp_path / "again", "--sample", "3").done()
    assert "sample    3 of 8 batches, seed 0" in ran.out
    assert ran.out.splitlines()[-1].startswith("BITWISE")


@pytest.mark.trust
def test_a_copy_of_the_original_reproduces_nothing(tmp_path: Path) -> None:
    import shutil

    run = support.finished(tmp_path)
    shutil.copytree(run, tmp_path / "again" / "demo" / run.name)
    again(run, tmp_path / "again").refused(2, "same execution")
    again(run, tmp_path / "results").refused(2, "where the reproduction would be")

"""`audit`: honest records pass, planted answers are found, whatever verify can say of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forged
import pytest
import support
from support import call

from evalkit import audit
from evalkit.audit import drawing, noise
from evalkit.errors import EvalkitError
from evalkit.events import Events
from evalkit.verify import verify

SHOWN = {  # a request, what is planted in its answer, and what the audit says of it
    "demo_qa/3/1/0": "its log-likelihood is off by",
    "demo_letters_days/2/0/0": "its log-likelihood is off by",
    "demo_endings/4/2/0": "recorded as the most probable text",
    "demo_cot_counting/1/0/0": "behind the best one",
    "demo_cot_calendar/5/0/0": "its text is not its tokens'",
    "demo_cot_calendar/7/0/0": "recorded to end by eos, ends by nowhere there",
}


def _plant(request: str, answer: dict[str, Any]) -> None:
    if request == "demo_qa/3/1/0":
        answer["loglikelihood"] += 5.0
    elif request == "demo_letters_days/2/0/0":
        answer["loglikelihood"] -= 1e-3  # of six nats: no score moves
    elif request == "demo_endings/4/2/0":
        answer["is_greedy"] = True
    elif request == "demo_cot_counting/1/0/0":
        answer["tokens"][3] = 17  # another word, as likely as it was
    elif request == "demo_cot_calendar/5/0/0":
        answer["text"] = "So the answer is Friday."
    elif request == "demo_cot_calendar/7/0/0":
        for key in ("tokens", "logprobs", "margins"):
            answer[key] = answer[key][:5]
        answer["stop"] = "eos"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield forged.planted(tmp_path_factory.mktemp("planted"), _plant)


@pytest.mark.trust
def test_an_honest_run_passes_and_a_witness_can_say_so(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    key = tmp_path / "key"
    call("sign", "--new-key", "--key", key).done()
    ran = call("audit", run, "--sample", "60", "--seed", "5", "--key", key).done()
    lines = ran.out.splitlines()
    assert lines[0] == "drawn     60 of 210 samples, seed 5"
    assert lines[-1].startswith("AUDIT PASSED: had 4.9% of the samples or more been altered")
    shown = call("verify", run, "--key", f"{key}.pub").done().out
    assert shown.splitlines()[-1].startswith("WITNESSED by")


@pytest.mark.trust
def test_every_planted_answer_is_named_in_a_record_that_verifies(planted: Path) -> None:
    assert verify(planted).consistent
    found = audit.audit(planted, audit.Asked(samples=210, seed=0), Events())
    told = {f"{n.rsplit(' ', 2)[0]}/{n.rsplit(' ', 1)[1]}": p for n, p in found.problems.items()}
    assert told.keys() == {request.rsplit("/", 2)[0] for request in SHOWN}
    for request, words in SHOWN.items():
        problems = told[request.rsplit("/", 2)[0]]
        assert any(words in problem for problem in problems), problems
    assert not found.whole  # six among two hundred are no other model
    assert found.exit_code == 1
    assert found.lines()[-1] == "AUDIT FAILED: 6 of 210 samples"
    assert found.claim["verdict"] == "FAILED" and found.claim["failed"] == 6


def test_a_record_that_contradicts_itself_is_not_audited(tmp_path: Path) -> None:
    run = support.finished(tmp_path)
    record = support.read(run)
    record["tasks"]["demo_qa"]["metrics"]["acc,none"]["value"] = 0.9
    support.write(run, record)
    call("audit", run).refused(1, "contradicts itself", "BROKEN")


def test_another_model_than_the_records_is_refused(tmp_path: Path, tiny_model: Any) -> None:
    run = support.finished(tmp_path)
    call("audit", run, "--model", tiny_model()).refused(2, "is not the record's")


def test_the_draw_follows_from_record_and_seed_and_covers_all() -> None:
    names = [("a", n) for n in range(50)] + [("b", n) for n in range(50)]
    drawn = drawing.draw(names, "f" * 64, 1, 20)
    assert drawn == drawing.draw(reversed(names), "f" * 64, 1, 20)
    assert drawn != drawing.draw(names, "e" * 64, 1, 20)
    assert drawn != drawing.draw(names, "f" * 64, 2, 20)
    assert set(drawn) < set(drawing.draw(names, "f" * 64, 1, 40))
    assert drawing.draw(names, "f" * 64, 1, 1000) == sorted(names)


def test_the_noise_of_a_sum_grows_with_its_root_and_is_never_nothing() -> None:
    found = noise.measure([0.03, -0.04])
    assert found.scale == pytest.approx(0.0353553, rel=1e-5)
    assert found.of_tokens(16) == pytest.approx(4 * found.of_tokens(1))
    assert noise.measure([0.0, 0.0]).of_tokens(1) > 0
    assert noise.measure([float("nan"), 0.1]).measured == 1


@pytest.mark.parametrize("level", ["A", "B", "C"])
def test_a_replay_gives_what_generating_and_scoring_gave(level: str, tiny_model: Any) -> None:
    """Recorded log-probabilities and margins, from one forward pass each."""
    import numpy as np

    from evalkit import model as models
    from evalkit import tokenise
    from evalkit.batching import make_batches
    from evalkit.engine import core, replay
    from evalkit.plan import Policy
    from evalkit.request import Request, Settings
    from evalkit.tokenise import Target, Tokenised
    from evalkit.tokenizer import Tokenizer

    model = models.resolve(str(tiny_model()))
    numerics = core.numerics_for(model, "float32")
    engine = core.load(model, Tokenizer(model), numerics, "cpu", level=level)
    source = np.random.default_rng(0)
    preamble = source.integers(10, 200, size=40).astype(np.uint32)
    settings = Settings((), 12)
    rows, again = [], []
    for doc in range(5):
        own = source.integers(10, 200, size=5 + doc).astype(np.uint32)
        prompt = np.concatenate([preamble, own])
        asked = Request("task", doc, 0, 0, "generate_until", "", settings=settings)
        rows.append(tokenise.Row(prompt, (Target(asked, len(prompt), -1),)))
    written: dict[str, Any] = {}
    for batch in make_batches(Tokenised(rows), Policy(), level=level):
        written |= engine.execute(batch)
    for row in rows:
        tokens = written[f"task/{row.targets[0].local_id}"]["tokens"]
        whole = np.concatenate([row.tokens, np.asarray(tokens[:-1], dtype=np.uint32)])
        asked = Request("task", row.targets[0].request.doc_id, 0, 0, "loglikelihood", "")
        again.append(tokenise.Row(whole, (Target(asked, len(row.tokens) - 1, tokens[-1]),)))
    for batch in make_batches(Tokenised(again), Policy(), level=level):
        for part, found in replay.replay(engine, batch, generated=True).items():
            assert found.logprobs == pytest.approx(written[part]["logprobs"], abs=1e-5)
            assert found.margins == pytest.approx(written[part]["margins"], abs=1e-5)
            assert replay.retold(engine, written[part]["tokens"], settings) == (
                written[part]["text"], written[part]["stop"],
            )  # fmt: skip
        scored = engine.execute(batch)
        for part, found in replay.replay(engine, batch, generated=False).items():
            assert found.total == pytest.approx(scored[part]["loglikelihood"], abs=1e-4)
            assert (min(found.margins) >= 0) == scored[part]["is_greedy"]


def test_nothing_to_sample_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match="at least 1"):
        audit.audit(tmp_path, audit.Asked(samples=0), Events())

"""`audit`: honest records pass, planted answers and other weights are found and named, whatever
verify can say of them."""

import copy
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import forged
import pytest
import support
from support import call

from evalkit.base.errors import EvalkitError
from evalkit.base.events import Events
from evalkit.judge import audit
from evalkit.judge.audit import drawing, noise, replaying
from evalkit.judge.audit.drawing import Drawn
from evalkit.judge.audit.noise import Value
from evalkit.judge.verify import verify
from evalkit.plan.store import Policy

SHOWN = {  # a request, what is planted in its answer, and what the audit says of it
    "demo_qa/3/1/0": "its log-likelihood is off by",
    "demo_letters_days/2/0/0": "its log-likelihood is off by",
    "demo_endings/4/2/0": "recorded as the most probable text",
    "demo_cot_counting/1/0/0": "behind the best one",
    "demo_cot_calendar/5/0/0": "its text is not its tokens'",
    "demo_cot_calendar/7/0/0": "recorded to end by stop_string, ends by nowhere there",
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
        answer["stop"] = "stop_string"


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
    assert lines[-1].startswith("AUDIT PASSED: rounding explains every difference; had 4.9% of")
    shown = call("verify", run, "--key", f"{key}.pub").done().out
    assert "signed by one key only: key (60 samples) may be its author" in shown.splitlines()[-1]
    author = tmp_path / "author"
    call("sign", run, "--new-key", "--key", author).done()
    shown = call("verify", run, "--key", f"{key}.pub").done().out
    assert shown.splitlines()[-1].startswith("WITNESSED by key (60 samples); signed by a key that")


@pytest.mark.trust
def test_every_planted_answer_is_named_in_a_record_that_verifies(planted: Path) -> None:
    assert verify(planted).consistent
    found = audit.audit(planted, audit.AuditOptions(samples=210, seed=0), Events())
    told = {f"{n.rsplit(' ', 2)[0]}/{n.rsplit(' ', 1)[1]}": p for n, p in found.problems.items()}
    assert told.keys() == {request.rsplit("/", 2)[0] for request in SHOWN}
    for request, words in SHOWN.items():
        problems = told[request.rsplit("/", 2)[0]]
        assert any(words in problem for problem in problems), problems
    assert not found.joint.shifted  # six among two hundred are no other model
    assert found.exit_code == 1
    words = "single answers are not the model's; 6 of 210 samples are wrong by themselves"
    assert found.lines()[-1] == f"AUDIT FAILED: {words}"
    assert found.claim["verdict"] == "FAILED" and found.claim["failed"] == 6
    assert found.claim["difference"] == "answers"


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
    found = noise.measure_noise([0.03, -0.04])
    assert found.scale == pytest.approx(0.0353553, rel=1e-5)
    assert found.of_tokens(16) == pytest.approx(4 * found.of_tokens(1))
    assert noise.measure_noise([0.0, 0.0]).of_tokens(1) > 0
    assert noise.measure_noise([float("nan"), 0.1]).measured == 1


# What may be off, and the test of all samples together


def test_a_sure_token_may_be_off_by_less_than_a_doubtful_one_and_a_sum_by_more() -> None:
    source = random.Random(0)
    logprobs = [-source.expovariate(1.0) for _ in range(2000)]
    values = [Value(source.gauss(0, 0.1) * (1 - 2.718281828**each), [each]) for each in logprobs]
    found = noise.measure_rounding(values, spread=1.5)
    assert found.logit == pytest.approx(0.1, rel=0.05)
    assert found.allowed([-3.0]) > 3 * found.allowed([-0.2])
    assert found.allowed([-1.0] * 16) == pytest.approx(4 * found.allowed([-1.0]))
    assert found.allowed([0.0]) > 0  # the last bit
    assert noise.measure_rounding([Value(0.0, [-1.0])], 1.0).allowed([-1.0]) > 0
    assert noise.measure_rounding([Value(float("nan"), [-1.0])], 1.0).measured == 0


def _samples(
    source: random.Random, scale: float, count: int, altered: float = 0.0
) -> list[list[float]]:
    """Samples of four values whose noise they share in part, some of them altered."""
    found = []
    for _ in range(count):
        shared = source.gauss(0, scale)
        values = [0.8 * source.gauss(0, scale) + 0.6 * shared for _ in range(4)]
        found.append([1000.0] * 4 if source.random() < altered else values)
    return found


NOISE = noise.Rounding(0.1, noise.ROUNDED, 1e-5, 1000)


@pytest.mark.parametrize("count", [1, 3, 10, 30, 100, 300])
def test_samples_as_noisy_as_allowed_are_no_shift_however_many_are_drawn(count: int) -> None:
    source = random.Random(count)
    drawn = [_samples(source, NOISE.spread, count) for _ in range(500)]
    shifted = sum(noise.joint_test(samples, NOISE).shifted for samples in drawn)
    assert shifted <= 5  # one in a hundred


def test_twice_the_noise_is_a_shift_and_a_few_altered_answers_are_not() -> None:
    source = random.Random(0)
    for _ in range(200):
        assert noise.joint_test(_samples(source, 2.2, 100), NOISE).shifted
        assert not noise.joint_test(_samples(source, 1.0, 100, altered=0.1), NOISE).shifted
    found = noise.joint_test(_samples(source, 2.2, 100), NOISE)
    assert found.times == pytest.approx(2.2, rel=0.2)
    assert "times as far from the model's as its own rounding" in str(found)
    assert noise.joint_test([], NOISE).further == 0


def test_the_kind_of_difference_is_the_shift_before_the_answers_before_rounding() -> None:
    assert audit.kind(False, 0, 100) == "rounding"
    assert audit.kind(False, 3, 100) == "answers"
    assert audit.kind(True, 3, 100) == "systematic"
    assert audit.kind(False, 9, 10) == "systematic"  # too few to be tested together
    assert audit.kind(False, 3, 3) == "answers"


# A model trained for seconds, audited where its weights are rounded, and where they are others


@dataclass(frozen=True)
class Audited:
    """Samples of a small model that talks, and how to answer and to audit them."""

    model: Any
    tokenizer: Any
    drawn: list[Drawn]

    def engine(self, dtype: str, threads: int = 1, level: str = "tree") -> Any:
        from evalkit.engine import core

        numerics = core.numerics_for(self.model, dtype, "native", threads)
        return core.load(self.model, self.tokenizer, numerics, "cpu", level=level)

    def answered(self, engine: Any, policy: Policy | None = None) -> list[Drawn]:
        from evalkit.plan.grouping import make_batches
        from evalkit.plan.tokenise import Tokenised

        rows = [row for sample in self.drawn for row in sample.rows.values()]
        found: dict[str, Any] = {}
        for batch in make_batches(Tokenised(rows), policy or Policy(), level=engine.level):
            found |= engine.execute(batch)
        return [Drawn(s.name, s.rows, {part: found[part] for part in s.rows}) for s in self.drawn]

    def kind(self, drawn: list[Drawn], dtype: str) -> str:
        """The kind of difference that an audit of these answers names."""
        engine = self.engine(dtype)
        found = replaying.replay(engine, drawn, Policy(), self.model, Events())
        together = noise.joint_test(list(found.judge.values.values()), found.judge.rounding)
        return audit.kind(together.shifted, sum(bool(s.problems) for s in drawn), len(drawn))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A hundred questions: sixty with three answers to choose from, forty to write one to."""
    import models as made

    from evalkit.inputs.models import model as models
    from evalkit.inputs.models.tokenizer import Tokenizer
    from evalkit.plan.requests.request import Request, Settings
    from evalkit.plan.tokenise import Row, tokenise

    folder = tmp_path_factory.mktemp("talker")
    made.talker(folder, steps=60, hidden_size=64, intermediate_size=128)
    model = models.resolve(str(folder))
    source = random.Random(0)
    requests = []
    for doc in range(100):
        context = made.question(source, source.choice(made.ANSWERS)) + made.CUE
        if doc < 40:
            settings = Settings(("\n\n",), 24)
            requests.append(
                Request("write", doc, 0, 0, "generate_until", context, settings=settings)
            )
            continue
        for index in range(3):
            words = f" {' '.join(source.sample(made.COMMON, 3))}"
            requests.append(Request("choose", doc, index, 0, "loglikelihood", context, words))
    drawn: dict[Any, Drawn] = {}
    tokenizer = Tokenizer(model)
    for row in tokenise(requests, tokenizer).rows:
        for target in row.targets:
            name = (target.request.task, target.request.doc_id)
            sample = drawn.setdefault(name, Drawn(name))
            sample.rows[target.request.id] = Row(row.tokens, (target,))
    return Audited(model, tokenizer, list(drawn.values()))


SMALL = replace(Policy(), max_tokens=512, row_tokens=64, chunk=16, max_slots=3)


WAYS = ("tree", "prefix", "none", "threads", "budgets", "attention", "onednn")


@pytest.mark.trust
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_model_answers_otherwise_computed_is_rounding(
    way: str, dtype: str, audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from evalkit.engine.hardware import kernels

    level = way if way in ("tree", "prefix", "none") else "tree"
    onednn: Any = torch.backends.mkldnn
    if way == "attention":
        monkeypatch.setattr(kernels, "on", lambda *_: kernels.Path(kernels.PLAIN))
    with onednn.flags(enabled=False) if way == "onednn" else nullcontext():
        engine = audited.engine(dtype, 2 if way == "threads" else 1, level)
        drawn = audited.answered(engine, SMALL if way == "budgets" else None)
    monkeypatch.undo()
    assert audited.kind(drawn, dtype) == audit.ROUNDING


def _quantised(model: Any, bits: int, group: int) -> None:
    import torch

    most = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() == 2:
                wide = weight.float().reshape(-1, group)
                scale = wide.abs().amax(dim=1, keepdim=True) / most
                weight.copy_(((wide / scale).round() * scale).reshape(weight.shape))


# What int8 does to so small a model is no more than bf16 does: docs/audit.md has a real one.
@pytest.mark.trust
@pytest.mark.parametrize(("dtype", "bits"), [("float32", 8), ("bfloat16", 4)])
def test_quantised_weights_are_named_as_a_shift_of_all_values(
    dtype: str, bits: int, audited: Audited
) -> None:
    engine = audited.engine(dtype)
    _quantised(engine.model, bits, 32)
    assert audited.kind(audited.answered(engine), dtype) == audit.SYSTEMATIC


@pytest.mark.trust
def test_altered_answers_of_a_rounding_model_are_named_one_by_one(audited: Audited) -> None:
    drawn = copy.deepcopy(audited.answered(audited.engine("bfloat16")))
    chosen = [sample for sample in drawn if sample.name[1] in (3, 57, 91)]
    for sample in chosen:
        answer = next(iter(sample.answers.values()))
        if "loglikelihood" in answer:
            answer["loglikelihood"] += 3.0
        else:
            answer["tokens"][5] = 17
    assert audited.kind(drawn, "bfloat16") == audit.ANSWERS
    assert [sample for sample in drawn if sample.problems] == chosen


@pytest.mark.parametrize("level", ["tree", "prefix", "none"])
def test_a_replay_gives_what_generating_and_scoring_gave(level: str, tiny_model: Any) -> None:
    """Recorded log-probabilities and margins, from one forward pass each."""
    import numpy as np

    from evalkit.engine import core, replay
    from evalkit.inputs.models import model as models
    from evalkit.inputs.models.tokenizer import Tokenizer
    from evalkit.plan import tokenise
    from evalkit.plan.grouping import make_batches
    from evalkit.plan.requests.request import Request, Settings
    from evalkit.plan.store import Policy
    from evalkit.plan.tokenise import Target, Tokenised

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
        generated = dict.fromkeys(written, settings)
        for part, found in replay.replay(engine, batch, generated).items():
            assert found.logprobs == pytest.approx(written[part]["logprobs"], abs=1e-5)
            assert found.margins == pytest.approx(written[part]["margins"], abs=1e-5)
            tokens = written[part]["tokens"]
            told, stop = replay.retold(engine, [], tokens, settings)
            assert (told["text"], stop) == (written[part]["text"], written[part]["stop"])
        scored = engine.execute(batch)
        for part, found in replay.replay(engine, batch, {}).items():
            assert found.total == pytest.approx(scored[part]["loglikelihood"], abs=1e-4)
            assert (min(found.margins) >= 0) == scored[part]["is_greedy"]


def test_nothing_to_sample_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(EvalkitError, match="at least 1"):
        audit.audit(tmp_path, audit.AuditOptions(samples=0), Events())

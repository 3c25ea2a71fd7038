"""Workers: the same answers as one process gives, and who is given what. What happens to them when
they die or hang is the fault suite's (tests/faults)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import support
from support import DEMO

from evalkit.base import events, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.base.machine import steering
from evalkit.inputs.models import model
from evalkit.plan.store import Plan
from evalkit.run import evaluate as run
from evalkit.run import folder
from evalkit.run.preparing import prepare
from evalkit.run.processes import child, serving, workers
from evalkit.run.processes.worker import Place


def test_two_workers_give_the_answers_of_one_process_whatever_steers_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What chooses kernels is cleared from the environment, told, and recorded."""
    cleared = {"NVIDIA_TF32_OVERRIDE": "1", "CUBLASLT_WORKSPACE_SIZE": "0",
               "ONEDNN_MAX_CPU_ISA": "SSE41"}  # fmt: skip
    monkeypatch.setattr(steering, "_cleared", {})  # this process goes on
    for name, value in (cleared | {"OMP_NUM_THREADS": "2"}).items():
        monkeypatch.setenv(name, value)
    ran = support.call("eval", *DEMO, "--workers", "2", "--out", tmp_path).done()
    record = support.read(ran.folder)
    assert record["answers"] == support.demo_answers()
    # on a busy machine the first may have answered everything before the second is ready
    assert sum(segment["batches"] for segment in record["segments"]) == 8
    assert record["command"]["argv"][-4:-2] == ["--workers", "2"]
    assert "workers" not in record["command"]["config"], "they change nothing of a run"
    assert ran.out.splitlines() == [str(ran.folder)]
    assert record["environment"]["cleared"] == cleared
    for name, value in cleared.items():
        assert f"cleared {name}={value}" in ran.err


def test_a_workers_process_asks_for_huge_pages_beside_what_its_user_asks_of_glibc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    wanted = f"glibc.malloc.arena_max=2:{child.HUGE_PAGES}"
    assert child.environment() == {**os.environ, "GLIBC_TUNABLES": wanted}
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert child.environment() == {**os.environ, "GLIBC_TUNABLES": child.HUGE_PAGES}


def _pipe() -> tuple[Any, Any]:
    read, write = os.pipe()
    return os.fdopen(read, "rb"), os.fdopen(write, "wb", buffering=0)


class Fake:
    """A worker's process that answers at once, without an engine; `dies` at some batches."""

    probes = False
    made: ClassVar[list["Fake"]] = []
    templates: ClassVar[list[str]] = []
    dies: Callable[[int, "Fake"], bool] = staticmethod(lambda *_: False)

    def __init__(self, inputs: Any, model: Any, place: Place, *_: Any, **__: Any) -> None:
        self.place = place
        ready = {"ready": True, "beats": False, "peak": 7}
        self.told: list[dict[str, Any]] = [ready]
        self.number, self.answered, self.dead, self.last_words = len(Fake.made), [], False, "oh"
        self.stdout, self._write = _pipe()
        self.stderr, self._err = _pipe()
        self.returned = 0
        Fake.made.append(self)
        self._write.write(b"x")

    def tell(self, **message: Any) -> None:
        if "batch" in message and not self.dead:
            if Fake.dies(message["batch"], self):
                self.dead, self.returned = True, -9
            else:
                self.answered.append(message["batch"])
                self.told.append({"done": message["batch"], "tokens": 1, "peak": 9})
        if "end" in message:
            self.dead = True
        self._write.write(b"x")

    def messages(self) -> list[dict[str, Any]] | None:
        self.stdout.read1(1)
        told, self.told = self.told[:1], self.told[1:]
        if self.told or self.dead:
            self._write.write(b"x")
        return told if told or not self.dead else None

    def listen(self) -> bool:
        return True

    def kill(self) -> None:
        self.dead, self.returned = True, -9

    def ended(self) -> int:
        for stream in (self.stdout, self._write, self.stderr, self._err):
            stream.close()
        return self.returned


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], workers.Workers]:
    """Makes so many fake workers for a planned demo run."""
    planned = folder.read(support.planned(tmp_path))
    monkeypatch.setattr(child, "started", Fake)
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "dies", staticmethod(lambda *_: False))

    def make(number: int) -> workers.Workers:
        places = [Place("cpu")] * number
        return workers.Workers(
            planned,
            Plan(planned.folder),
            model.resolve("demo"),
            places,
            events.Events(),
            lambda: None,
            [],
            None,
        )

    return make


def work(team: workers.Workers) -> list[int]:
    """Let them work; the batches that were answered."""
    total = len(team.batches)
    team.work(list(range(total)), stopping.Stop(), lambda: None)
    return sorted(batch for fake in Fake.made for batch in fake.answered)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_every_batch_is_answered_once(team: Callable[[int], workers.Workers], number: int) -> None:
    made = team(number)
    assert work(made) == list(range(len(made.batches)))
    assert made.tokens == len(made.batches) and made.peak_bytes >= 7 * number


def test_what_a_dead_worker_had_goes_to_others(
    team: Callable[[int], workers.Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "dies", staticmethod(lambda batch, fake: fake.number == 0))
    made = team(2)
    assert work(made) == list(range(len(made.batches)))
    assert len(Fake.made) == 3, "started again"


def test_a_batch_that_kills_is_left_out_and_named_in_the_end(
    team: Callable[[int], workers.Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "dies", staticmethod(lambda batch, _: batch == 2))
    made = team(2)
    with pytest.raises(EvalkitError, match="1 batches have no answer, and in 1 of them") as caught:
        work(made)
    assert caught.value.code == Exit.STOPPED
    answered = sorted(batch for fake in Fake.made for batch in fake.answered)
    assert answered == [n for n in range(len(made.batches)) if n != 2]


def test_a_restarted_workers_death_is_in_the_log(
    team: Callable[[int], workers.Workers], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Fake, "dies", staticmethod(lambda batch, fake: fake.number == 0))
    made = team(1)
    made._events.open(tmp_path / "events.jsonl")
    work(made)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (died,) = [event for event in told if event["event"] == "worker.died"]
    assert died["returned"] == -9 and died["last"] == "oh"


# One checks the level for all


class Waiting(Fake):
    """A worker that has loaded its weights and waits for a check of its level."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.checks: list[bool] = []
        self.told = [{"waits": "key"}]

    def tell(self, **message: Any) -> None:
        if "probes" in message:
            self.checks.append(message["probes"])
            if Waiting.fails(self):
                self.dead, self.returned = True, -9
            else:
                self.told += [{"checked": "key", "probed": TAKEN if message["probes"] else None},
                              {"ready": True, "beats": False, "peak": 7}]  # fmt: skip
        super().tell(**message)

    fails: Callable[["Waiting"], bool] = staticmethod(lambda _: False)


TAKEN = {"seconds": 1.0, "peak_memory_bytes": 1, "energy_joules": {"cpu": None, "gpu": None}}


@pytest.fixture
def waiting(
    team: Callable[[int], workers.Workers], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], workers.Workers]:
    """Makes so many workers that wait for a check."""
    monkeypatch.setattr(child, "started", Waiting)
    monkeypatch.setattr(Waiting, "fails", staticmethod(lambda _: False))
    return team


def checks() -> list[bool]:
    """What the workers were told about their check, each once: to do it, or that it has passed."""
    return [told for fake in Fake.made for told in getattr(fake, "checks", [])]


def test_one_worker_checks_the_level_and_the_others_go_on_when_it_has_passed(
    waiting: Callable[[int], workers.Workers],
) -> None:
    made = waiting(3)
    assert work(made) == list(range(len(made.batches)))
    assert checks().count(True) == 1
    assert all(len(fake.checks) <= 1 for fake in Fake.made if isinstance(fake, Waiting))


def test_where_the_worker_that_checks_dies_another_one_does_it(
    waiting: Callable[[int], workers.Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waiting, "fails", staticmethod(lambda fake: fake.number == 0))
    made = waiting(2)
    assert work(made) == list(range(len(made.batches)))
    assert Fake.made[0].answered == [] and checks().count(True) == 2


# Started before there is a plan


@pytest.fixture(params=["forked", "with a GPU"])
def fakes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """The fake workers that are started: forked, or, where there may be a GPU, one by one."""

    def template() -> SimpleNamespace:
        return SimpleNamespace(end=lambda: Fake.templates.append("ended"))

    def started(
        inputs: Any, model: Any, place: Place, *_: Any, spare: Any = None, **__: Any
    ) -> Any:
        one = spare or Fake(inputs, model, place)
        one.place = place
        return one

    monkeypatch.setattr(child, "started", started)
    monkeypatch.setattr(child, "spare", lambda: Fake(None, None, Place("none yet")))
    monkeypatch.setattr(child, "template", template)
    if request.param != "forked":
        monkeypatch.setattr(run, "gpus", SimpleNamespace(signs=lambda _: ["a GPU"]))
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "templates", [])
    return Fake.made


def evaluate(out: Path, **more: Any) -> Path:
    options = prepare.Options(model="demo", suite="demo", out=out, **more)
    return run.evaluate(options, events.Events(), ["evalkit"], workers=2)


@pytest.mark.parametrize("error", [EvalkitError("no data"), KeyboardInterrupt()])
def test_workers_that_were_started_early_end_where_there_is_no_plan(
    error: BaseException, fakes: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*_: Any) -> Any:
        assert len(fakes) == 2 and not any(fake.dead for fake in fakes)
        raise error

    monkeypatch.setattr(run, "plan", plan)
    with pytest.raises(type(error)):
        evaluate(tmp_path)
    assert len(fakes) == 2 and all(fake.dead and fake.stdout.closed for fake in fakes)


def test_the_template_ends_where_there_is_nothing_to_load(
    fakes: list[Fake], tmp_path: Path
) -> None:
    """For a finished run, and where what was asked for can't be run."""
    finished = support.finished(tmp_path)
    assert evaluate(tmp_path / "results") == finished
    with pytest.raises(EvalkitError):
        evaluate(tmp_path / "results", limit=-1)
    assert all(fake.dead for fake in fakes)
    assert len(fakes) + len(Fake.templates) == 2


def test_a_run_takes_over_the_workers_that_were_started_early(
    fakes: list[Fake], tmp_path: Path
) -> None:
    with pytest.raises(EvalkitError, match="batches have no answer"):  # fakes write no journal
        evaluate(tmp_path)
    assert len(fakes) == 2
    assert sorted(batch for fake in fakes for batch in fake.answered) == list(range(8))


def test_a_batch_in_whose_hands_a_worker_died_is_answered_by_itself() -> None:
    class Parent:
        is_last = False
        told: SimpleQueue[Any] = SimpleQueue()

    parent = Parent()
    ahead = serving.Ahead(["a", "b", "c", "d"], parent)  # type: ignore[arg-type]
    assert ahead.peek() is None, "nothing is known yet, and nobody waits for it"
    for told in ({"batch": 0}, {"batch": 1}, {"batch": 2, "alone": True}, {"batch": 3}, {}):
        parent.told.put(told)
    assert ahead.following() == 0 and ahead.peek() == "b"
    ahead.take()
    assert ahead.peek() is None, "the next one is to be alone"
    assert ahead.following() == 2 and ahead.peek() is None, "with nothing beside it"
    assert ahead.following() == 3 and ahead.peek() is None
    assert ahead.following() is None

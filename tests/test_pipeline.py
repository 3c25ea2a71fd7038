"""Batches side by side through a model's layer stages: the same bits, and all of them at work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import call, read_journal

from evalkit import engine
from evalkit.base import canon
from evalkit.engine import pipeline
from evalkit.engine.pipeline import Stages
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.store import Plan
from evalkit.record import journal
from evalkit.run import folder as run_folder
from evalkit.run.processes import serving, worker


@pytest.fixture(scope="module")
def planned(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Plan]:
    """A loaded model of four layers, and batches of the demo suite for it."""
    folder = tiny_model(num_hidden_layers=4)
    out = tmp_path_factory.mktemp("results")
    options = (
        "--model",
        folder,
        "--suite",
        "demo",
        "--limit",
        "8",
        "--out",
        out,
        "--level",
        "tree",
    )
    plan = Plan(call("plan", *options).done().folder)
    model = models.resolve(str(folder))
    numerics = engine.Numerics(**canon.read_json(plan.folder / "run.json")["inputs"]["numerics"])
    return engine.load(model, Tokenizer(model), numerics, "cpu", level="tree"), plan


def answers_id(found: dict[str, Any]) -> str:
    """The answers id of all batches' answers."""
    return canon.digest(journal.digests(journal.assemble(found)))


def piped(planned: tuple[Any, Plan], stages: int, lanes: int | None = None) -> tuple[str, float]:
    """The answers id of the plan in so many stages, and for how long two were busy at once."""
    loaded, plan = planned
    first = pipeline.first_layers(loaded.model, stages)
    staged = Stages(first, measured=True)
    made = pipeline.lanes(loaded, staged, lanes)
    names, found, reading = list(plan.entries), dict[str, Any](), threading.Lock()
    numbers = iter(range(len(names)))

    def answer(index: int, lane: Any) -> None:
        with reading:
            batch = plan.batch(names[index])
        found.update(lane.execute(batch))

    pipeline.spread(made, lambda: next(numbers, None), answer, lambda: None)
    assert {one.stage for one in staged.busy} == set(range(stages))
    return answers_id(found), pipeline.overlap(staged.busy)


@pytest.fixture(scope="module")
def alone(planned: tuple[Any, Plan]) -> str:
    """The answers id of the batches one after another through the model as it is."""
    loaded, plan = planned
    return answers_id(
        {
            key: value
            for name in plan.entries
            for key, value in loaded.execute(plan.batch(name)).items()
        }
    )


@pytest.mark.parametrize("stages", [2, 4])
def test_stages_work_at_once_and_give_the_same_bits(
    planned: tuple[Any, Plan], alone: str, stages: int
) -> None:
    found, overlap = piped(planned, stages)
    assert found == alone
    assert overlap > 0, "two stages are busy at the same time"
    print(f"{stages} stages: two at once for {100 * overlap:.0f}% of the time")


def test_what_device_map_alone_gives_is_one_stage_at_a_time(
    planned: tuple[Any, Plan], alone: str
) -> None:
    assert piped(planned, 4, lanes=1) == (alone, 0.0)


def test_lanes_share_every_weight(planned: tuple[Any, Plan]) -> None:
    loaded, _ = planned
    for lane in pipeline.lanes(loaded, Stages([0, 2])):
        theirs = dict(lane.model.named_parameters())
        assert all(theirs[name] is one for name, one in loaded.model.named_parameters())


def test_an_error_in_a_stage_lets_the_other_lanes_go_on(planned: tuple[Any, Plan]) -> None:
    loaded, plan = planned
    first, second = pipeline.lanes(loaded, Stages([0, 2]))

    def fail(*_: Any) -> None:
        raise ValueError("a fault in the second stage")

    pipeline.layers_of(first.model)[3].register_forward_pre_hook(fail)
    batch = plan.batch(next(iter(plan.entries)))
    with pytest.raises(ValueError, match="second stage"):
        first.execute(batch)
    assert second.execute(batch) == loaded.execute(batch)


def test_stages_are_cut_in_equal_parts(planned: tuple[Any, Plan]) -> None:
    loaded, _ = planned
    assert pipeline.first_layers(loaded.model, 3) == [0, 1, 2]
    assert pipeline.first_layers(loaded.model) == [0]  # all on one device


def test_an_error_in_a_lane_ends_the_others_and_is_raised(planned: tuple[Any, Plan]) -> None:
    loaded, _ = planned
    numbers, done = iter(range(100)), []

    def one(index: int, lane: Any) -> None:
        done.append(index)
        if index == 3:
            raise ValueError("number 3")

    def end() -> None:
        nonlocal numbers
        numbers = iter(())

    with pytest.raises(ValueError, match="number 3"):
        pipeline.spread([loaded, loaded], lambda: next(numbers, None), one, end)
    assert 4 <= len(done) < 100


def test_a_worker_uses_its_lanes(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in two stages, as on two devices: every batch in a lane, the run's answers the
    same."""
    folder = tiny_model(num_hidden_layers=4)
    run = call("plan", "--model", folder, "--suite", "demo", "--limit", "4", "--out", tmp_path,
               "--level", "tree").done().folder  # fmt: skip
    monkeypatch.setattr(pipeline, "first_layers", lambda model: [0, 2])
    read, found, answered = run_folder.read(run), models.resolve(str(folder)), []
    made = worker.Worker(read.body["inputs"], found, worker.Place("cpu"))
    made.check()
    made.begin(read, Plan(run), lambda *_, **__: None)
    assert len(made.lanes) == 2
    names = list(Plan(run).entries)

    class Parent:
        is_last = False
        told: SimpleQueue[Any] = SimpleQueue()

        def say(self, **message: Any) -> None:
            answered.append(message["done"])

        def end(self) -> None:
            self.told.put({})

    parent = Parent()
    for index in range(len(names)):
        parent.told.put({"batch": index})
    parent.told.put({})
    serving.answer_batches(made, names, parent)  # type: ignore[arg-type]
    made.close()
    assert sorted(answered) == list(range(len(names)))
    assert len(read_journal(run).batches) == len(names)


# GPUs, as far as they can be stood in for


class Events:
    """In torch.cuda's place: a device that comes to what it is given a second after it was told,
    a second for each thing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.entered = 0.0, list[str]()
        for name in ("synchronize", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: None)
        monkeypatch.setattr(torch.cuda, "Event", lambda **_: self.event())
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream on {device}")
        monkeypatch.setattr(torch.cuda, "stream", self.stream)

    def event(self) -> Any:
        made = SimpleNamespace(at=None, synchronize=lambda: None)

        def record(_: Any) -> None:
            self.now += 1.0
            made.at = self.now

        made.record = record
        made.elapsed_time = lambda other: 1000 * (other.at - made.at)
        return made

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        self.entered.append(name)
        yield
        self.entered.append(f"left {name}")


def test_a_stage_on_a_gpu_is_measured_by_its_events_not_by_when_it_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Events(monkeypatch)
    gpu, cpu = torch.device("cuda:0"), torch.device("cpu")
    made = pipeline.Clock([gpu, cpu])
    first, second = made.mark(gpu), made.mark(gpu)
    assert second() - first() == pytest.approx(1.0)
    told, again = made.mark(cpu), made.mark(cpu)
    assert 0 <= again() - told() < 0.5


def test_a_lane_has_a_stream_of_its_own_on_every_gpu_and_none_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Events(monkeypatch)
    places = [torch.device(name) for name in ("cuda:0", "cuda:1", "cuda:0", "cpu")]
    own = pipeline.streams(places)
    assert own == ["stream on cuda:0", "stream on cuda:1"]
    with pipeline.using(own):
        assert seen.entered == own
    assert seen.entered[2:] == ["left stream on cuda:1", "left stream on cuda:0"]


def test_a_model_on_several_devices_has_as_many_lanes_as_stages(
    planned: tuple[Any, Plan],
) -> None:
    loaded, _ = planned
    assert len(pipeline.lanes(loaded, Stages([0, 1, 2, 3]))) == 4

"""What a user can get wrong: one clear line, the right exit code, nothing lost, no traceback."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import support
from hub import MISSING, SHARED
from support import DEMO, call

from evalkit.base.errors import EvalkitError
from evalkit.inputs import hub
from evalkit.inputs.models import model
from evalkit.inputs.models.builtin.demo import model as demo

MakeModel = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> tuple[str, Path]:
    """A results folder of the test's own, as options."""
    return "--out", tmp_path / "results"


@pytest.fixture
def broken(tmp_path: Path, tiny_model: MakeModel) -> Path:
    """A copy of a good model's folder, for the test to break."""
    return shutil.copytree(tiny_model(), tmp_path / "broken")


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    body = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: item for key, item in body.items() if item is not None}))


# The model


def test_a_folder_that_does_not_exist(out: tuple[str, Path]) -> None:
    for reference in ("/nowhere/model", "./nowhere", "a/b/c", "~/nowhere"):
        ran = call("eval", "--model", reference, "--suite", "demo", *out)
        ran.refused(3, "there is no such model folder", reference)


def test_a_folder_that_is_no_model(tmp_path: Path, out: tuple[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    ran = call("eval", "--model", tmp_path / "empty", "--suite", "demo", *out)
    ran.refused(2, "is not a model: it has no config.json", "save_pretrained")


def test_a_file_in_place_of_a_folder(tiny_model: MakeModel, out: tuple[str, Path]) -> None:
    weights = tiny_model() / "model.safetensors"
    call("eval", "--model", weights, "--suite", "demo", *out).refused(3, "model folder")


def test_a_name_that_is_neither_a_folder_nor_a_hub_id(out: tuple[str, Path]) -> None:
    for name in ("two words", " ", "a//b", "-x"):
        ran = call("eval", f"--model={name}", "--suite", "demo", "--offline", *out)
        assert ran.code in (2, 3) and len(ran.errors) == 1, ran.err + ran.traceback


def test_a_model_without_weights(broken: Path, out: tuple[str, Path]) -> None:
    (broken / "model.safetensors").unlink()
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    ran.refused(2, "has no weights", "*.safetensors")


def test_weights_that_are_pickles_need_a_word_of_trust(broken: Path, out: tuple[str, Path]) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    arguments = ("plan", "--model", broken, "--suite", "demo", "--limit", "1", *out)
    call(*arguments).refused(2, "pickles only", "--allow-pickle", "convert it to safetensors")
    folder = call(*arguments, "--allow-pickle").done().folder
    call("execute", folder, "--model", broken).done()
    assert "pytorch_model.bin" in support.read(folder, "run.json")["model"]["files"]


def test_a_pickle_beside_safetensors_is_never_read(broken: Path, out: tuple[str, Path]) -> None:
    (broken / "pytorch_model.bin").write_bytes(b"would run")
    arguments = ("plan", "--model", broken, "--suite", "demo", "--allow-pickle", *out)
    folder = call(*arguments).done().folder
    assert "pytorch_model.bin" not in support.read(folder, "run.json")["model"]["files"]


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("BertForMaskedLM", "bert"),
        ("BertModel", "bert"),
        ("T5ForConditionalGeneration", "t5"),
        ("ViTForImageClassification", "vit"),
        ("CLIPModel", "clip"),
        ("WhisperForConditionalGeneration", "whisper"),
        ("LlamaForSequenceClassification", "llama"),
    ],
)
def test_a_model_that_does_not_continue_texts(
    broken: Path, out: tuple[str, Path], architecture: str, model_type: str
) -> None:
    edit(broken / "config.json", architectures=[architecture], model_type=model_type)
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    ran.refused(2, "is no causal language model", architecture)


def test_a_model_that_brings_its_own_code(broken: Path, out: tuple[str, Path]) -> None:
    edit(
        broken / "config.json", architectures=["NewForCausalLM"], model_type="new",
        auto_map={"AutoModelForCausalLM": "code.NewForCausalLM"},
    )  # fmt: skip
    (broken / "code.py").write_text("raise SystemExit('this code must not run')")
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    ran.refused(2, "brings its own model code", "--trust-remote-code")


@pytest.mark.parametrize("text", ["{", "[]", "null", "", "\x00"], ids=range(5))
def test_a_damaged_config(broken: Path, out: tuple[str, Path], text: str) -> None:
    (broken / "config.json").write_text(text)
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    ran.refused(2, "config.json", str(broken))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": None},
        {"num_attention_heads": 3},
        {"hidden_size": "wide"},
        {"dtype": 7},
        {"architectures": [{}]},
        {"model_type": [], "architectures": 3},
    ],
    ids=["no model type", "impossible heads", "no number", "no dtype", "no names", "no name"],
)
def test_a_config_that_makes_no_sense(
    broken: Path, out: tuple[str, Path], change: dict[str, Any]
) -> None:
    edit(broken / "config.json", **change)
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    assert ran.code == 2 and len(ran.errors) == 1, ran.err + ran.traceback


@pytest.mark.parametrize(
    "data",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1\n",
        b"",
        b"1234",
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a":{}}}',
        struct.pack("<Q", 35) + b'{"a":{"dtype":"F32","shape":["xy"]}}',
        struct.pack("<Q", 99_999) + b"[" * 99_999,
    ],
    ids=[
        "a git-lfs pointer",
        "empty",
        "short",
        "a huge header",
        "a list",
        "no JSON",
        "no shape",
        "nested",
    ],
)
def test_a_weight_file_that_is_none(broken: Path, out: tuple[str, Path], data: bytes) -> None:
    (broken / "model.safetensors").write_bytes(data)
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    assert ran.code in (2, 3), f"exit code {ran.code}\n{ran.err}\n{ran.traceback}"
    assert len(ran.errors) == 1 and str(broken) in ran.errors[0]


def test_weights_that_transformers_does_not_load_do_not_count(
    broken: Path, tiny_model: MakeModel
) -> None:
    """Mistral's and Meta's repos hold the same weights twice, once as consolidated.safetensors."""
    from evalkit.inputs.models import checkpoint, model

    shutil.copy(broken / "model.safetensors", broken / "consolidated.safetensors")
    good = checkpoint.num_parameters(model.resolve(str(tiny_model())))
    assert checkpoint.num_parameters(model.resolve(str(broken))) == good


def test_weights_that_were_not_copied_to_their_end(broken: Path, out: tuple[str, Path]) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    ran = call("eval", "--model", broken, "--suite", "demo", *out)
    assert ran.code in (2, 3), f"exit code {ran.code}\n{ran.err}\n{ran.traceback}"
    assert len(ran.errors) == 1 and not ran.out


def test_a_model_without_a_tokenizer(broken: Path, out: tuple[str, Path]) -> None:
    for path in broken.glob("tokenizer*"):
        path.unlink()
    call("eval", "--model", broken, "--suite", "demo", *out).refused(2, "can't load", "tokenizer")


def test_a_damaged_tokenizer(broken: Path, out: tuple[str, Path]) -> None:
    for text in ('{"version": "1.0"}', '{"added_tokens": []}', '{"a":' * 10_000):
        (broken / "tokenizer.json").write_text(text)
        ran = call("eval", "--model", broken, "--suite", "demo", *out)
        ran.refused(2, "can't load", "tokenizer")


def test_a_revision_is_for_hub_models(broken: Path, out: tuple[str, Path]) -> None:
    for name in (broken, "demo"):
        ran = call("eval", "--model", name, "--suite", "demo", "--revision", "main", *out)
        ran.refused(2, "--revision is for Hub models")


def test_a_mistyped_built_in_model_is_named(tmp_path: Path) -> None:
    ran = call("eval", "--model", "smolm2", "--suite", "demo", "--offline", "--out", tmp_path)
    ran.refused(3, "smolm2 is not in the cache", "did you mean smollm2?")


# The suite


def test_an_unknown_suite_gets_the_nearest_names(out: tuple[str, Path]) -> None:
    ran = call("eval", "--model", "demo", "--suite", "dmo", *out)
    ran.refused(2, "unknown suite 'dmo'", "did you mean demo")

    ran = call("eval", "--model", "demo", "--suite", "zzz", *out)
    ran.refused(2, "choose from chat, code, core, demo")


def test_a_suite_file_that_is_not_there(tmp_path: Path, out: tuple[str, Path]) -> None:
    for name in (tmp_path / "none.yaml", tmp_path):
        ran = call("eval", "--model", "demo", "--suite", name, *out)
        ran.refused(2, "there is no such suite file", str(name))


def test_an_unknown_key_of_a_suite_gets_the_nearest(tmp_path: Path, out: tuple[str, Path]) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa"], "aply_chat_template: true\n")
    ran = call("eval", "--model", "demo", "--suite", suite, *out)
    ran.refused(2, "unknown suite key 'aply_chat_template'", "did you mean apply_chat_template")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "mapping"),
        ("- demo_qa\n", "mapping"),
        ("name: [x\n", "not readable YAML"),
        ("name: x\n\ttasks: y\n", "not readable YAML"),
        ("\x00", "not readable YAML"),
        ("name: mine\n", "'tasks' is a required property"),
        ("name: mine\ntasks: []\n", "tasks"),
        ("name: mine\ntasks: demo_qa\n", "tasks"),
        ("name: mine\ntasks: [{task: demo_qa, num_fewshot: -1}]\n", "num_fewshot"),
        ("name: ../mine\ntasks: [demo_qa]\n", "name"),
        ("name: mine\ntasks: [demo_qa]\nlimit: 0\n", "limit"),
        ("name: mine\ntasks: [demo_qa]\nlimit: many\n", "limit"),
        ("name: mine\ntasks: [demo_qa]\nseeds: {numpy: -1}\n", "seeds"),
        ("name: mine\ntasks: [demo_qa]\ninclude_path: nowhere\n", "is not a folder"),
    ],
    ids=range(14),
)
def test_a_damaged_suite(tmp_path: Path, out: tuple[str, Path], text: str, word: str) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(text)
    call("eval", "--model", "demo", "--suite", suite, *out).refused(2, word, str(suite))


def test_a_suite_that_is_no_text(tmp_path: Path, out: tuple[str, Path]) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_bytes(b"name: \xff\xfe\n")
    call("eval", "--model", "demo", "--suite", suite, *out).refused(2, "not readable YAML")


def test_a_suite_without_a_lock(tmp_path: Path, out: tuple[str, Path]) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    suite.with_name("mine.lock.yaml").unlink()
    ran = call("eval", "--model", "demo", "--suite", suite, *out)
    ran.refused(3, "suite 'mine' has no lock", f"run `evalkit lock {suite}`")


@pytest.mark.parametrize(
    ("old", "new", "code", "word"),
    [
        ("evalkit/lock/2", "evalkit/lock/9", 2, "lock is not valid"),
        ("documents: 42", "documents: 41", 1, "task 'demo_qa': documents is 42, locked 41"),
        ("split: test", "split: train", 1, "task 'demo_qa': split is test, locked train"),
        ("rows: sha256:0b", "rows: sha256:00", 1, "task 'demo_qa': rows is sha256:0b"),
        ("revision: sha256:68", "revision: sha256:00", 1, "not the data that the suite is locked"),
        ("  demo_qa:", "  demo_qb:", 1, "1 leaf tasks missing (demo_qb)"),
        ("tasks:", "tusks:", 2, "lock is not valid"),
        ("schema:", "[schema:", 2, "lock is not readable YAML"),
    ],
)
def test_a_lock_that_is_not_the_suites(
    tmp_path: Path, out: tuple[str, Path], old: str, new: str, code: int, word: str
) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    lock = suite.with_name("mine.lock.yaml")
    assert old in lock.read_text()
    lock.write_text(lock.read_text().replace(old, new, 1))
    call("plan", "--model", "demo", "--suite", suite, *out).refused(code, word)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("gen_kwargs: {max_gen_toks: 0}", "0 new tokens"),
        ("gen_kwargs: {max_gen_toks: -5}", "-5 new tokens"),
        ("gen_kwargs: {max_gen_toks: x}", "no numbers"),
        ("gen_kwargs: {temperature: hot}", "no numbers"),
        ("gen_kwargs: {num_beams: 4}", "does not know: num_beams"),
        ("gen_kwargs: {max_gen_toks: 2048}", "the model's context is 2048"),
        ("apply_chat_template: true", "tokenizer has none"),
    ],
)
def test_generation_settings_that_can_not_be_honoured(
    tmp_path: Path, out: tuple[str, Path], extra: str, word: str
) -> None:
    suite = support.suite(tmp_path, "mine", ["demo_cot"], f"{extra}\n")
    call("lock", suite, "--offline")
    call("plan", "--model", "demo", "--suite", suite, *out).refused(2, word)


QUESTION = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: data/{data}.jsonl}}}}
test_split: {split}
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: 0
doc_to_choice: ["a", "b"]
"""


@pytest.mark.parametrize(
    "mistake",
    [{"kind": "multiple_choic"}, {"text": "{{nope.x}}"}, {"split": "tst"}, {"data": "broken"}],
    ids=["output type", "field", "split", "data"],
)
def test_a_task_of_the_users_own_with_a_mistake(tmp_path: Path, mistake: dict[str, str]) -> None:
    from evalkit.inputs.models.builtin.demo.model import TASKS

    suite = tmp_path / "mine.yaml"
    suite.write_text("name: mine\ntasks: [mine]\ninclude_path: tasks\n")
    good = {"kind": "multiple_choice", "text": "{{question}}", "split": "test", "data": "qa"}
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    shutil.copy(TASKS / "data" / "qa.jsonl", tmp_path / "tasks" / "data")
    (tmp_path / "tasks" / "data" / "broken.jsonl").write_text('{"question": \n')
    task = tmp_path / "tasks" / "mine.yaml"
    task.write_text(QUESTION.format(**good))
    call("lock", suite).done()
    task.write_text(QUESTION.format(**good | mistake))
    ran = call("lock", suite)
    assert ran.code == 2, f"exit code {ran.code}\n{ran.err}\n{ran.traceback}"
    assert len(ran.errors) == 1 and "mine" in ran.errors[0] and not ran.out


def test_a_suites_own_data_that_is_gone_or_altered(tmp_path: Path, out: tuple[str, Path]) -> None:
    from evalkit.inputs.models.builtin.demo.model import TASKS

    suite = support.suite(tmp_path, "mine", ["demo_qa"])
    tasks = shutil.copytree(TASKS, tmp_path / "tasks")
    suite.write_text(suite.read_text().replace("package:demo/tasks", "tasks"))
    arguments = ("plan", "--model", "demo", "--suite", suite, *out)
    data = tasks / "data" / "qa.jsonl"
    data.write_text(data.read_text().replace("tea", "oil", 1))
    call(*arguments).refused(1, "data/qa.jsonl is not the data that the suite is locked to")
    data.unlink()
    call(*arguments).refused(2, "its data 'data/qa.jsonl' is not in the suite's task folder")


# Prompts


def test_a_prompt_longer_than_the_context_is_cut_and_counted(
    tiny_model: MakeModel, out: tuple[str, Path]
) -> None:
    model = tiny_model(max_length=100)
    chosen = ("--model", model, "--suite", "demo", "--limit", "3")
    folder = call("eval", *chosen, *out).done().folder
    plan, health = support.read(folder, "plan.json"), support.read(folder)["health"]
    assert health["truncated_prompts"] == sum(plan["truncated"].values()) >= 6
    assert plan["truncated"]["demo_cot_counting"] == 3


def test_no_room_to_generate(tiny_model: MakeModel, out: tuple[str, Path]) -> None:
    model = tiny_model(max_length=48)
    ran = call("eval", "--model", model, "--suite", "demo", *out)
    ran.refused(2, "generates up to 48 tokens but the model's context is 48", "max_gen_toks")


# Options


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--limit", "0"], 2, ["--limit must be at least 1"]),
        (["--limit", "-3"], 2, ["--limit must be at least 1"]),
        (["--dtype", "int8"], 2, ["unknown dtype 'int8'", "float32, bfloat16, float16"]),
        (["--device", "gpu"], 2, ["unknown device 'gpu'", "cpu, cuda or cuda:N"]),
        (["--device", "meta"], 2, ["device 'meta'"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--seed", str(2**32)], 2, ["--seed"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_an_option_that_can_not_be(
    out: tuple[str, Path], options: list[str], code: int, words: list[str]
) -> None:
    call("eval", *DEMO, *out, *options).refused(code, *words)
    assert not list(out[1].rglob("run.json"))


def test_a_gpu_that_is_not_there(out: tuple[str, Path]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    call("eval", *DEMO, *out, "--device", "cuda").refused(3, "torch sees no GPU", "nvidia-smi")


# Folders


def test_a_results_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "results"):
        call("eval", *DEMO, "--out", folder).refused(3, str(folder), "--out")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").touch()
    call("eval", *DEMO, "--out", tmp_path / "results").refused(3, "demo", "--out")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., bool]]]:
    """A folder that is a file system of its own, and what makes it read-only."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", os.fspath(folder)]
        return not subprocess.run(command, capture_output=True).returncode

    if shutil.which("mount") is None or not mount("size=9m"):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder, lambda: mount("remount,ro")
    finally:
        subprocess.run(["umount", os.fspath(folder)], check=True)


def test_a_results_folder_that_is_read_only(mounted: tuple[Path, Callable[..., bool]]) -> None:
    folder, close = mounted
    assert close()
    call("eval", *DEMO, "--out", folder).refused(3, str(folder), "--out")


def test_a_cache_that_is_read_only_serves_what_is_in_it(
    mounted: tuple[Path, Callable[..., bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, close = mounted
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(folder))
    files = model.resolve("demo").files
    assert close()
    assert model.resolve("demo").files == files
    with pytest.raises(EvalkitError, match="set XDG_CACHE_HOME to a folder that you can write to"):
        demo.build(folder / "evalkit" / "another")


def test_a_cache_that_can_not_be_written_costs_time_only(
    tmp_path: Path, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, out: tuple[str, Path]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    call("plan", "--model", tiny_model(), "--suite", "demo", *out).done()
    call("plan", *DEMO, *out).refused(3, str(tmp_path / "file"), "set XDG_CACHE_HOME to a folder")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', ""], ids=range(4))
def test_a_torn_cache_costs_time_only(
    tmp_path: Path, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from evalkit.inputs.models import model

    good = model.resolve(str(tiny_model())).files
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    (tmp_path / "evalkit").mkdir()
    (tmp_path / "evalkit" / "digests.json").write_text(text)
    assert model.resolve(str(tiny_model())).files == good


@pytest.mark.parametrize("command", ["execute", "finish", "status", "verify"])
def test_a_run_that_is_none(tmp_path: Path, command: str) -> None:
    call(command, tmp_path / "none").refused(3, str(tmp_path / "none"))
    (tmp_path / "file").touch()
    ran = call(command, tmp_path / "file")
    if command != "verify":
        ran.refused(3, str(tmp_path / "file"))
    else:  # which takes packs as well
        assert ran.code == 1 and "not a pack" in ran.out and "BROKEN" in ran.out


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for command in ("execute", "finish", "status"):
        call(command, tmp_path).refused(3, str(tmp_path))
    ran = call("verify", tmp_path)
    assert ran.code == 1 and "there is no record.json" in ran.out and "BROKEN" in ran.out


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "evalkit/run/9"}', "null"])
def test_a_damaged_run_json(tmp_path: Path, text: str) -> None:
    folder = support.planned(tmp_path)
    (folder / "run.json").write_text(text)
    for command in ("execute", "finish", "status"):
        call(command, folder).refused(2, "run.json")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"schema": "evalkit/plan/9"}', '{"schema": "evalkit/plan/1"}'],
)
def test_a_damaged_plan_json(tmp_path: Path, text: str) -> None:
    folder = support.planned(tmp_path)
    (folder / "plan.json").write_text(text)
    for command in ("execute", "status"):
        ran = call(command, folder)
        assert ran.code in (1, 2), f"exit code {ran.code}\n{ran.err}\n{ran.traceback}"
        assert len(ran.errors) == 1 and "plan.json" in ran.errors[0]


def test_a_record_from_a_newer_evalkit(tmp_path: Path) -> None:
    folder = support.finished(tmp_path)
    record = support.read(folder)
    (folder / "record.json").write_text(json.dumps(record | {"schema": "evalkit/record/5"}))
    ran = call("verify", folder)
    assert ran.code == 2 and not ran.err
    first, last = ran.out.splitlines()
    assert first.startswith("FAIL") and "newer schema (evalkit/record/5)" in first
    assert last == "UNREADABLE: upgrade evalkit to verify this record"


# The Hub


@dataclass(frozen=True)
class Gate:
    """A Hub with a model that anyone may read and one that needs a token."""

    url: str
    process: "subprocess.Popen[bytes]"

    def env(self, cache: Path, token: str = "") -> dict[str, str]:
        """The environment of a command that asks it."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": os.fspath(cache), "HF_TOKEN": token}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel) -> Iterator[Gate]:
    """The stand-in Hub with a gated model; skips where ../shared is absent."""
    if MISSING:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("gate")
    for name in ("org__open", "org__gated", "org__pickled"):
        shutil.copytree(tiny_model(), folder / "models" / name)
    (folder / "models" / "org__gated" / ".hub.json").write_text('{"gated": true}')
    pickled = folder / "models" / "org__pickled"
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    process = subprocess.Popen(
        [
            sys.executable, SHARED / "hubserver.py", "--models", folder / "models", "--port", "0",
            "--port-file", folder / "port", "--token", "hf_good",
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (folder / "port").is_file():
        assert process.poll() is None and time.monotonic() < deadline, "the Hub does not start"
        time.sleep(0.05)
    yield Gate(f"http://127.0.0.1:{(folder / 'port').read_text().strip()}", process)
    process.terminate()
    process.wait(10)


# Several command lines in one process, because each import of the Hub's client takes a second.
SEVERAL = """
import json, os, sys
sys.path.insert(0, {tests!r})
from support import call
for token, arguments in json.loads({commands!r}):
    os.environ["HF_TOKEN"] = token
    ran = call(*arguments)
    print(json.dumps([ran.code, ran.out, ran.err + ran.traceback]))
"""


def ask(env: dict[str, str], *commands: tuple[str, list[str]]) -> list[support.Ran]:
    """Run command lines, each with a token, in one process with its own Hub and cache."""
    tests = os.fspath(Path(__file__).parent)
    program = SEVERAL.format(tests=tests, commands=json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": os.fspath(support.ROOT), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [support.Ran(*json.loads(line)) for line in done.stdout.splitlines()]


def plan(model: str, results: Path, *options: str) -> list[str]:
    """A plan command line for a Hub model."""
    return ["plan", "--model", model, "--suite", "demo", "--out", str(results), *options]


@pytest.mark.faults
@pytest.mark.shared
def test_the_hub_says_no_in_one_line(gate: Gate, tmp_path: Path) -> None:
    """A wrong revision, a wrong name, a gate without and with a wrong token, and with the right."""
    results = tmp_path / "results"
    commands = [
        ("", plan("org/open", results, "--revision", "nope")),
        ("", plan("org/none", results)),
        ("", plan("org/pickled", results)),
        ("", plan("org/gated", results)),
        ("hf_wrong", plan("org/gated", results)),
        ("hf_good", plan("org/gated", results)),
    ]
    revision, name, pickled, without, wrong, right = ask(gate.env(tmp_path / "hf"), *commands)
    revision.refused(2, "model org/open has no revision 'nope'", "a branch")
    name.refused(3, "no Hub model 'org/none'", "HF_TOKEN")
    pickled.refused(2, "pickles only", "--allow-pickle")
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin")), "refused before it is fetched"
    for ran in (without, wrong):
        ran.refused(3, "model org/gated is gated", "HF_TOKEN")
    files = support.contents(right.done().folder)
    assert len(support.read(right.folder, "run.json")["model"]["revision"]) == 40
    assert not [path for path, data in files.items() if b"hf_good" in data]


def test_a_hub_that_answers_with_an_error_is_not_passed_over_for_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 401 or a 500 fell back to whatever the cache had, without a word."""
    from huggingface_hub.errors import HfHubHTTPError

    def answer(*_: object) -> None:
        raise HfHubHTTPError(
            "no", response=SimpleNamespace(status_code=500, headers={}, request=None)
        )

    monkeypatch.setattr(hub, "_fetch", answer)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(EvalkitError, match=r"the Hub answered 500 .* model org/open"):
        model.resolve("org/open")


@pytest.mark.faults
@pytest.mark.shared
def test_without_the_hub_a_warm_cache_works_and_a_cold_one_is_one_line(
    gate: Gate, tmp_path: Path
) -> None:
    warm, results = tmp_path / "warm", tmp_path / "results"
    (first,) = ask(gate.env(warm), ("", plan("org/open", results)))
    folder = first.done().folder
    commit = support.read(folder, "run.json")["model"]["revision"]
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}
    again = ask(
        nobody | {"HF_HOME": os.fspath(warm)},
        ("", plan("org/open", results)),
        ("", plan("org/open", results, "--revision", commit)),
        ("", plan("org/open", results, "--revision", "main")),
        ("", plan("org/open", results, "--offline")),
        ("", plan("org/open", results, "--revision", "v2")),
    )
    for ran in again[:4]:
        assert ran.done().folder == folder
    again[4].refused(3, "model org/open@v2 is not in the cache", "HF_HOME", "HF_ENDPOINT")
    cold = ask(
        nobody | {"HF_HOME": os.fspath(tmp_path / "cold")},
        ("", plan("org/open", results)),
        ("", plan("org/open", results, "--offline")),
    )
    for ran in cold:
        ran.refused(3, "model org/open is not in the cache", str(tmp_path / "cold"))

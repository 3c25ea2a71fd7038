"""A model's own generation settings against transformers' `generate`, which is what obeys them in
lm-eval's `hf` model."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evalkit.base.errors import EvalkitError
from evalkit.inputs.models import checkpoint
from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer
from evalkit.plan.requests.request import Settings, Terms, settings_from
from evalkit.plan.store import Batch
from tests import batches
from tests.batches import token_ids

torch = pytest.importorskip("torch")
engine = pytest.importorskip("evalkit.engine")
attention = pytest.importorskip("evalkit.engine.tree.attention")
processors = pytest.importorskip("evalkit.engine.text.processors")
replay = pytest.importorskip("evalkit.engine.replay")

PROMPTS = [token_ids(seed, length) for seed, length in enumerate((5, 30, 12, 1))]
NEW = 16  # tokens
# Each changes at least one of the texts that the model writes otherwise.
OWN: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 3.0,
    "encoder_no_repeat_ngram_size": 1,
    "suppress_tokens": range(20, 900),
    "begin_suppress_tokens": range(20, 900),
    "bad_words_ids": [[token] for token in range(20, 700)] + [[800, 801]],
    "sequence_bias": [[[token], 5.0] for token in range(40)],
    "forced_eos_token_id": 7,
    "forced_bos_token_id": 9,
    "min_length": 20,
    "min_new_tokens": 9,
    "max_new_tokens": 5,
    "exponential_decay_length_penalty": [3, 1.9],
    "remove_invalid_values": True,
    "renormalize_logits": True,
}
SEVERAL = ("repetition_penalty", "begin_suppress_tokens")
SILENT = ("remove_invalid_values", "renormalize_logits", "encoder_no_repeat_ngram_size")


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    """A random model's."""
    return tiny_model("llama", tokenizer="llama3")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Any]:
    """The model in an engine, whose level and generation config each test sets."""
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    model = models.resolve(str(folder))
    yield engine.load(
        model, Tokenizer(model), engine.Numerics(dtype="float32"), "cpu", level="tree"
    )
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture
def with_config(loaded: Any, folder: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """The engine as if its model had come with these generation settings, at some level."""
    from transformers import GenerationConfig

    before = loaded.model.generation_config

    def made(level: str = "tree", **settings: Any) -> Any:
        stated = json.loads((folder / "generation_config.json").read_text())
        plain = {k: list(v) if isinstance(v, range) else v for k, v in settings.items()}
        (tmp_path / "generation_config.json").write_text(json.dumps(stated | plain))
        kind: Any = GenerationConfig
        config = kind.from_pretrained(tmp_path)
        loaded.model.generation_config = config
        found = copy.copy(loaded)
        found.level, found.generation, found.kept = level, processors.own(config), None
        found.warpers = {}
        found.eos_ids = frozenset(config.eos_token_id if isinstance(config.eos_token_id, list)
                                  else [config.eos_token_id])  # fmt: skip
        return found

    yield made
    loaded.model.generation_config = before


def written(found: Any, settings: Settings, prompts: list[list[int]] = PROMPTS) -> list[Any]:
    """What the engine writes behind each prompt."""
    given: Batch = batches.prompts(prompts, settings)
    if found.level == "tree":
        return list(found.execute(given).values())
    with attention.plain(found):  # below level tree rows of a batch are of one length
        each = (batches.prompts([prompt], settings) for prompt in prompts)
        return [answer for one in each for answer in found.execute(one).values()]


def generated(found: Any, prompt: list[int], **settings: Any) -> list[int]:
    """What transformers' own `generate` writes behind a prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode(), attention.plain(found):
        made = found.model.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=0,
            **{"do_sample": False, "max_length": len(prompt) + NEW} | settings,
        )  # fmt: skip
    text: list[int] = made[0, len(prompt) :].tolist()
    return text


@pytest.fixture(scope="module")
def plain(loaded: Any) -> list[list[int]]:
    """What the model writes behind each prompt without settings of its own."""
    return [generated(loaded, prompt) for prompt in PROMPTS]


def own_settings(found: Any, **given: Any) -> Settings:
    """A task's settings with what the model's own add to them."""
    config = found.model.generation_config
    own = checkpoint.acting_settings(config, (*checkpoint.OBEYED, *checkpoint.SAMPLING))
    return settings_from({"max_gen_toks": NEW} | given, task="own", terms=Terms(own=own))


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, "tree") for name in OWN] + [(name, "prefix") for name in ("min_length", *SEVERAL)],
)
def test_a_models_own_settings_are_obeyed_as_transformers_obeys_them(
    name: str, level: str, plain: list[list[int]], with_config: Callable[..., Any]
) -> None:
    more: dict[str, Any] = {}
    if name.startswith("min"):
        more["eos_token_id"] = sorted({tokens[n] for tokens in plain for n in (0, 2, 4)})
        plain = [generated(with_config(**more), prompt) for prompt in PROMPTS]
    found = with_config(level, **{name: OWN[name]}, **more)
    wanted = [generated(found, prompt) for prompt in PROMPTS]
    answers = written(found, own_settings(found))
    assert [answer["tokens"] for answer in answers] == wanted
    assert (wanted != plain) is (name not in SILENT)


def test_settings_together_are_done_in_transformers_order(
    with_config: Callable[..., Any],
) -> None:
    chosen = ("repetition_penalty", "suppress_tokens", "sequence_bias", "forced_eos_token_id")
    both = {name: OWN[name] for name in chosen} | {"no_repeat_ngram_size": 2}
    both["sequence_bias"] = [[[token], 8.0] for token in range(900, 940)]
    found = with_config(**both)
    answers = written(found, own_settings(found))
    assert [a["tokens"] for a in answers] == [generated(found, prompt) for prompt in PROMPTS]


def test_who_shares_a_batch_changes_no_text(with_config: Callable[..., Any]) -> None:
    found = with_config(repetition_penalty=1.3, begin_suppress_tokens=OWN["begin_suppress_tokens"])
    greedy = own_settings(found, presence_penalty=0.5)
    alone = [written(found, greedy, [prompt])[0]["tokens"] for prompt in PROMPTS]
    assert [answer["tokens"] for answer in written(found, greedy)] == alone
    drawn = own_settings(found, do_sample=True, temperature=0.7, presence_penalty=0.5)
    together, first = written(found, drawn), written(found, drawn, PROMPTS[:1])
    assert together[0]["tokens"] == first[0]["tokens"] != alone[0]


@pytest.mark.parametrize("name", [name for name in OWN if name not in SILENT])
def test_a_replay_by_teacher_forcing_knows_the_processors(
    name: str, with_config: Callable[..., Any]
) -> None:
    """An honest record of such a model would be called forged without them."""
    found = with_config(**{name: OWN[name]})
    settings = own_settings(found)
    for prompt, answer in zip(PROMPTS, written(found, settings), strict=True):
        tokens = answer["tokens"]
        row = batches.chain([*prompt, *tokens[:-1]])
        end, start = len(row.tokens) - 1, len(prompt) - 1
        batch = batches.scored([row], [(0, end, start, tokens[-1])])
        (target,) = batch.targets
        replayed = replay.replay(found, batch, {target.id: settings})[target.id]
        assert replayed.logprobs == pytest.approx(answer["logprobs"], abs=1e-4)
        assert min(replayed.margins) >= 0
        assert min(answer["margins"]) >= 0 and not any(map(math.isnan, answer["logprobs"]))


# Sampling


def test_a_task_that_samples_takes_the_models_own_settings_then_transformers() -> None:
    def made(own: dict[str, Any], **given: Any) -> tuple[float, float, int, float]:
        found = settings_from({"do_sample": True, **given}, task="own", terms=Terms(own=own))
        return found.temperature, found.top_p, found.top_k, found.min_p

    assert made({}) == (1.0, 1.0, 50, 0.0)
    assert made({"temperature": 0.6, "top_p": 0.95, "top_k": 20}) == (0.6, 0.95, 20, 0.0)
    assert made({"top_k": 20, "top_p": 0.8}, top_k=0, temperature=2, min_p=0.1) == (2, 0.8, 0, 0.1)


def test_a_task_that_does_not_sample_is_greedy_with_any_model() -> None:
    own = {"do_sample": True, "temperature": 0.7, "top_k": 5}
    assert settings_from({}, task="own", terms=Terms(own=own)) == Settings((), 256)


@pytest.mark.parametrize(
    ("given", "own", "whose"),
    [
        ({"do_sample": True, "temperature": 0.0}, {}, "task 'own'"),
        ({"do_sample": True}, {"temperature": 0.0}, "the model's generation config"),
    ],
)
def test_sampling_at_temperature_0_is_refused(
    given: dict[str, Any], own: dict[str, Any], whose: str
) -> None:
    """It was taken for 1 without a word."""
    with pytest.raises(EvalkitError, match=f"{whose} gives temperature 0 to sample with"):
        settings_from(given, task="own", terms=Terms(own=own))


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"top_k": 3, "temperature": 0.5},
        {"typical_p": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "min_p": 0.05},
        {"top_h": 0.4, "top_p": 0.7, "repetition_penalty": 1.2},
    ],
)
def test_what_is_drawn_from_is_what_transformers_draws_from(
    own: dict[str, Any], with_config: Callable[..., Any]
) -> None:
    from transformers import GenerationMixin

    found = with_config(**own)
    settings = own_settings(found, do_sample=True)
    logits = torch.randn(1200, generator=torch.Generator().manual_seed(0)) * 3
    prompt, text = PROMPTS[1], PROMPTS[2]
    chooser = processors.chooser(found, settings, prompt)
    ours = chooser.warped(chooser.processed(text, logits))
    config = found.model._prepare_generation_config(None, do_sample=True, max_length=99)[0]
    found.model._prepare_special_tokens(config, True, device="cpu")
    mixin: Any = GenerationMixin
    theirs = mixin._get_logits_processor(
        found.model, config, len(prompt), torch.tensor([prompt]), device="cpu"
    )(torch.tensor([prompt + text]), logits[None].clone())[0]
    assert torch.equal(ours, theirs)
    assert (ours == -math.inf).any()


def test_with_one_token_to_draw_from_a_text_is_the_most_probable_one(
    with_config: Callable[..., Any],
) -> None:
    found = with_config(do_sample=True, top_k=1)
    answers = written(found, own_settings(found, do_sample=True, temperature=1.0))
    assert [a["tokens"] for a in answers] == [generated(found, prompt) for prompt in PROMPTS]


def test_presence_and_frequency_penalties_count_what_the_text_holds(
    with_config: Callable[..., Any],
) -> None:
    settings = own_settings(with_config(), presence_penalty=0.5, frequency_penalty=0.25)
    chooser = processors.chooser(with_config(), settings, [3, 4, 4])
    logits = torch.zeros(8)
    assert chooser.processed([], logits).tolist() == [0.0] * 8
    assert chooser.processed([5, 5], logits).tolist() == [0, 0, 0, 0, 0, -1.0, 0, 0]
    assert chooser.processed([5, 5, 4], logits).tolist() == [0, 0, 0, 0, -0.75, -1.0, 0, 0]


# What can't be obeyed


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 4), ("guidance_scale", 1.5), ("stop_strings", ["x"]), ("penalty_alpha", 0.6),
     ("dola_layers", "low"), ("max_time", 2.0), ("token_healing", True)],
)  # fmt: skip
def test_what_can_not_be_obeyed_is_refused_by_its_name(
    name: str, value: Any, folder: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    stated = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(stated | {name: value}))
    found = checkpoint.own_settings(models.resolve(str(model)))
    assert found == {name: value}
    with pytest.raises(EvalkitError, match=f"sets {name} to"):
        checkpoint.check_settings(found)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"top_k": "many", "do_sample": true}'])
def test_a_broken_generation_config_is_said(text: str, folder: Path, tmp_path: Path) -> None:
    """transformers passes over one with a line in its log, and takes its defaults."""
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "generation_config.json").write_text(text)
    with pytest.raises(EvalkitError, match=r"generation_config\.json"):
        checkpoint.own_settings(models.resolve(str(model)))


def test_settings_in_an_old_models_config_count_as_well(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"repetition_penalty": 1.2}))
    assert checkpoint.own_settings(models.resolve(str(model))) == {"repetition_penalty": 1.2}

"""Small models for the tests: random ones of many architectures, and one that talks.

`tiny` makes a random model with a tokenizer of one of three families, in a fraction of a second.
`talker` trains a small Llama for seconds until it answers prompts of bbh's shape as real models do:
a chain of thought of some hundred tokens, "So the answer is ...", then the stop string. Random
models never stop, so speed and stopping can't be measured on them. Every text here is ours.

    python -m tests.models talker FOLDER
"""

import itertools
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Llama 3's: contractions, words with one leading sign, numbers of up to 3 digits, signs, blanks.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_COMMON = """\
the of and to in is that it was for on are as with his they at be this have from or had by hot
word but what some we can out other were all there when up use your how said an each she which
do their time if will way about many then them write would like so these her long make thing see
him two has look more day could go come did number sound no most people my over know than call
first who may down side been now find any new work part take get place made live where after
back little only round man year came show every good me give our under name very through just
form sentence great think say help low line differ turn cause much mean before move right boy
old too same tell does set three want air well also play small end put home read hand port large
spell add even land here must big high such follow act why ask men change went light kind off
need house picture try us again animal point mother world near build self earth father following
argument deductively valid invalid given explicitly stated premises options correct order words
list sequence answer question step position left tallest newest oldest cheapest expensive less
table plays dancing partner gift ball book swap trade finished above below true false truth lies
tells statement plausible date today tomorrow ago month error translation contains movie similar
adjective humorous edit artist draws shape color item items remaining arrange paragraph
describes objects fixed logically consistent within left-most facing forward return start
starting always face steps around however therefore because since between times gone saw sitting
walking closed pronoun antecedent explain refers ambiguous typical person judge intentionally
sarcastic infer context evaluate result random expression not sort alphabetically track several
swapped among Alice Bob Claire Dave Eve Fred Gertrude"""
COMMON = _COMMON.split()
# The talker's chain of thought: rows of eight words, no word twice, so that the last token alone
# says what comes next: learnt in seconds, and it holds after any prompt. Where it begins, which of
# two words stands first and fifth in a row, and the answer are the model's choice, from all of the
# text before.
CHAIN = """apple pear plum cherry lemon grape peach melon; red blue green yellow purple orange brown
white; dog horse sheep goat mouse rabbit camel tiger; robin eagle crow falcon hawk owl swan goose;
river lake ocean island beach desert forest valley; bread butter cheese honey sugar pepper rice
soup; hammer knife needle ladder rope bucket brush shovel; iron copper silver gold lead steel glass
stone; king queen prince knight farmer doctor lawyer soldier; north south east west upper inner
outer middle; winter spring summer autumn morning evening night noon; chair desk lamp mirror carpet
curtain shelf sofa; piano guitar violin flute drum trumpet harp organ; circle square triangle sphere
cone cube prism arrow; shirt jacket glove hat scarf boot belt sock; car train boat plane truck
bicycle ship wagon; head neck shoulder elbow finger knee ankle heart; oak pine maple cedar willow
birch elm ash; rose tulip daisy lily violet ivy fern moss; cloud storm thunder rain snow wind fog
frost; spoon fork plate cup bowl kettle oven stove; letter stamp envelope paper pencil ink page
cover"""
_OTHERS = """\
wall roof floor window door stair chimney cellar shop market bank school church hospital museum
library happy angry proud brave calm gentle lucky clever walk jump swim climb dance sing laugh
sleep wide narrow deep shallow heavy thick smooth rough music art poem novel"""
OTHERS = _OTHERS.split()
ROWS = tuple(tuple(row.split()) for row in CHAIN.split(";"))
SECOND = dict(zip((word for row in ROWS for word in (row[0], row[4])), OTHERS, strict=True))
STARTS = 14  # the rows that a chain may begin with: 80 to 184 tokens
TAIL = (".", " So", " the", " answer", " is", " (")
ANSWERS = ("letters", "words", "numbers")
LETTERS = "ABCDEFG"
CUE = "\nA: Let's think step by step.\n"


def tiny(
    folder: Path,
    architecture: str = "llama",
    *,
    tokenizer: str = "llama3",
    seed: int = 0,
    max_length: int = 2048,
    dtype: str = "float32",
    chat_template: bool = False,
    texts: Iterable[str] = (),
    **config: Any,
) -> Path:
    """A random model of two layers in `folder`; `config` goes to transformers' configuration.

    `architecture` is any model type of transformers; `tokenizer` is llama3 (byte-level BPE, adds
    BOS), gpt2 (byte-level BPE, adds nothing, BOS is EOS) or sentencepiece (BPE over the whole text
    with bytes to fall back on, adds BOS and a leading blank, like Llama 2's). `texts` are more
    texts to train the tokenizer on.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = train_tokenizer(tokenizer, [*prose(), *texts], vocabulary=1200, max_length=max_length)
    if chat_template:
        made.chat_template = CHAT_TEMPLATE
    shape = {
        "vocab_size": len(made),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": max_length,
        "initializer_range": 0.1,  # wide enough that no two tokens are nearly tied
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": None,
    }
    if architecture not in ("gpt2", "gpt_neox", "opt", "bloom", "mpt"):
        shape |= {"intermediate_size": 128, "num_key_value_heads": 2}
    made_config = AutoConfig.for_model(architecture, **(shape | config))
    causal: Any = AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = causal.from_config(made_config, dtype=getattr(torch, dtype))
    save_model(folder, model.eval(), made)
    return folder


def save_model(folder: Path, *parts: Any) -> None:
    """Save a model and its tokenizer into a folder without a progress bar."""
    import transformers

    bars: Any = transformers.utils.logging
    folder.mkdir(parents=True, exist_ok=True)
    bars.disable_progress_bar()
    for part in parts:
        part.save_pretrained(folder)
    bars.enable_progress_bar()


def prose() -> Iterator[str]:
    """What tokenizers learn from: the same sentences on every machine."""
    source = random.Random(0)
    for _ in range(300):
        yield " ".join(source.choices(COMMON, k=12)).capitalize() + "."
        yield question(source, source.choice(ANSWERS)) + CUE
        yield f"So the answer is ({source.choice(LETTERS)}).\n\n"
        yield f"So the answer is {source.choice(['Yes', 'No', '7', '12'])}.\n\n"


def train_tokenizer(kind: str, texts: list[str], *, vocabulary: int, max_length: int) -> Any:
    """Return a tokenizer of that kind, trained on the texts."""
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    makers = {"llama3": _llama3, "gpt2": _gpt2, "sentencepiece": _sentencepiece}
    raw, bos, eos = makers[kind](texts, vocabulary)
    return fast(tokenizer_object=raw, bos_token=bos, eos_token=eos, model_max_length=max_length)


def _adds_bos(raw: Any, bos: str) -> None:
    from tokenizers.processors import TemplateProcessing

    raw.post_processor = TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos} $B",
        special_tokens=[(bos, raw.token_to_id(bos))],
    )


def _train(raw: Any, texts: list[str], vocabulary: int, special: list[str], bytes_: bool) -> None:
    from tokenizers import pre_tokenizers, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if bytes_ else [],
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)


def _llama3(texts: list[str], vocabulary: int) -> tuple[Any, str, str]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    raw.decoder = decoders.ByteLevel()
    _train(raw, texts, vocabulary, [BOS, EOS, *HEADERS], bytes_=True)
    _adds_bos(raw, BOS)
    return raw, BOS, EOS


def _gpt2(texts: list[str], vocabulary: int) -> tuple[Any, str, str]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    _train(raw, texts, vocabulary, ["<|endoftext|>"], bytes_=True)
    return raw, "<|endoftext|>", "<|endoftext|>"


def _sentencepiece(texts: list[str], vocabulary: int) -> tuple[Any, str, str]:
    """Trained word by word, used on the whole text, with Llama 2's ids: unk, BOS, EOS, bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(learnt, [text.replace("\n", " ") for text in texts], vocabulary - 259, [], bytes_=False)
    found = json.loads(learnt.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    raw = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [tuple(pair) for pair in found["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens(special)
    _adds_bos(raw, "<s>")
    return raw, "<s>", "</s>"


def question(source: random.Random, style: str) -> str:
    """A question of bbh's shape: some sentences, then options as the style has them."""
    words = [
        source.choice(COMMON) if source.random() < 0.8 else str(source.randint(1, 99))
        for _ in range(source.randint(8, 24))
    ]
    cut = source.randint(4, len(words))
    text = "Q: " + " ".join(words[:cut]).capitalize() + ". " + " ".join(words[cut:]).capitalize()
    if style == "letters":
        offered = LETTERS[: source.randint(3, len(LETTERS))]
        return text + "?\nOptions:" + "".join(f"\n({x}) {source.choice(COMMON)}" for x in offered)
    return text + ("?\nOptions:\n- Yes\n- No" if style == "words" else " =")


def _answer(source: random.Random, style: str) -> str:
    chain = " ".join(source.choices(COMMON, k=source.randint(6, 12))).capitalize()
    value = {
        "letters": f"({source.choice(LETTERS[:3])})",
        "words": source.choice(["Yes", "No"]),
        "numbers": str(source.randint(1, 12)),
    }[style]
    return f"{chain}. So the answer is {value}.\n\n"


class Chain:
    """The talker's chains in token ids: what may follow what."""

    def __init__(self, tokenizer: Any) -> None:
        self.one: dict[str, int] = {}
        words = [*itertools.chain(*ROWS), *OTHERS]
        heads = [row[0] for row in ROWS[:STARTS]]
        for text in (*(f" {word}" for word in words), *heads, *TAIL, *LETTERS, ").\n\n", "Q"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert len(ids) == 1, f"the talker's tokenizer cuts {text!r} in pieces"
            self.one[text] = ids[0]

    def options(self, row: int) -> list[list[int]]:
        """From `row` to the end: the tokens of which one comes next, for each place."""
        words = [word for words in ROWS[row:] for word in words]
        made = [[f" {w}", f" {SECOND[w]}"] if w in SECOND else [f" {w}"] for w in words]
        if row < STARTS:
            made[0] = [words[0] for words in ROWS[:STARTS]]
        made += [[text] for text in TAIL] + [[*LETTERS[:4]], [").\n\n"], ["Q"]]
        return [[self.one[text] for text in texts] for texts in made]


@dataclass(frozen=True)
class Lesson:
    """One training step's batch: groups of prompts, each group with one chain after its prompts.

    `tokens` [groups, prompts, PROMPT + WINDOW]; `options` [groups, WINDOW, STARTS] are the tokens
    that may come next, as far as `allowed` of the same shape says so.
    """

    tokens: Any
    options: Any
    allowed: Any


GROUPS, PROMPTS, PROMPT, WINDOW = 4, 6, 72, 40


def _lesson(tokenizer: Any, chain: Chain, source: random.Random) -> Lesson:
    import torch

    tokens = torch.zeros(GROUPS, PROMPTS, PROMPT + WINDOW, dtype=torch.long)
    options = torch.zeros(GROUPS, WINDOW, STARTS, dtype=torch.long)
    allowed = torch.zeros(GROUPS, WINDOW, STARTS, dtype=torch.bool)
    for group in range(GROUPS):
        begins = group % 2 == 0  # the others are taught a late piece of the chain
        row = source.randrange(STARTS) if begins else source.randrange(STARTS, len(ROWS))
        places = chain.options(row)[:WINDOW]
        for place, following in enumerate(places):
            options[group, place, : len(following)] = torch.tensor(following)
            allowed[group, place, : len(following)] = begins or place > 0
        for index, prompt in enumerate(_prompts(tokenizer, source)):
            way = [source.choice(following) for following in places]
            way[0] = places[0][row] if begins else places[0][0]
            tokens[group, index, : PROMPT + len(way)] = torch.tensor(prompt + way)
    return Lesson(tokens, options, allowed)


def _prompts(tokenizer: Any, source: random.Random) -> Iterator[list[int]]:
    """Token ids of prompts with the same shots and different questions, cut on the left.

    Half of the shots and of the questions are a few tokens, repeated at random, so that
    no text, however odd, leads the model off its chain.
    """

    def odd(count: int) -> list[int]:
        kinds = source.sample(range(len(tokenizer)), source.choice([1, 3, 10, 40, 200]))
        return source.choices(kinds, k=count)

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def style() -> str:
        return source.choice(ANSWERS)

    shots = "".join(question(source, kind) + CUE + _answer(source, kind) for kind in ANSWERS[:2])
    before = odd(PROMPT) if source.random() < 0.5 else ids(shots)
    for _ in range(PROMPTS):
        middle = ids(question(source, style()))
        if source.random() < 0.5:
            middle = odd(source.randint(20, 60))
        made = (before + middle + ids(CUE))[1 - PROMPT :]
        yield [tokenizer.bos_token_id] * (PROMPT - len(made)) + made


def _loss(model: Any, lesson: Lesson) -> Any:
    """How unlikely what may come next is, and how far the choices are from being choices.

    Between the options of a place the model is taught no preference: over a group's prompts each
    option's log-probability, less the options' mean, is to have mean 0 and standard deviation 2.
    So what it chooses depends on the prompt, and clearly.
    """
    hidden = model.model(input_ids=lesson.tokens.flatten(0, 1)).last_hidden_state
    logits = model.lm_head(hidden[:, PROMPT - 1 : -1])
    wanted = lesson.options[:, None].expand(-1, PROMPTS, -1, -1)
    chances = logits.log_softmax(-1).unflatten(0, (GROUPS, PROMPTS)).gather(-1, wanted)
    allowed = lesson.allowed[:, None]  # chances: [groups, prompts, WINDOW, STARTS]
    counts = allowed.sum(-1)
    held = chances.masked_fill(~allowed, -1e9).logsumexp(-1) * (counts > 0)
    mean = (chances * allowed).sum(-1) / counts.clamp(min=1)
    liking = (chances - mean[..., None]) * allowed
    off = liking.mean(1) ** 2 + (liking.std(1) - 2.0) ** 2
    off = (off * allowed[:, 0]).sum(-1) / counts[:, 0].clamp(min=1) * (counts[:, 0] > 1)
    return (0.5 * PROMPTS * off.sum() - held.sum()) / (PROMPTS * (counts > 0).sum())


def _look_back(model: Any) -> None:
    """Let three of four heads prefer near tokens, by powers of the distance, and fix it.

    All embeddings get the same first component; queries and keys made from it alone score a
    distance by a sum of RoPE's cosines, which falls with its logarithm. Otherwise every choice
    would depend on the shots, which a task's prompts share, more than on the question.
    """
    import torch

    config = model.config
    half = config.head_dim // 2
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table[:, 0] = table.std() * (config.hidden_size - 1) ** 0.5
        for layer in model.model.layers:
            keys, queries = layer.self_attn.k_proj.weight, layer.self_attn.q_proj.weight
            keys[:, 0] = torch.tensor([0.25] * half + [0.0] * half).repeat(
                config.num_key_value_heads
            )
            queries[:, 0] = 0.0
            for head, power in enumerate([0.0, 0.9, 1.3, 1.7] * (config.num_attention_heads // 4)):
                first = head * config.head_dim
                size = power * math.log(10_000) / half * config.head_dim**0.5
                queries[first : first + half, 0] = size / (0.25 * config.hidden_size / 2)
            keys.requires_grad_(False)
            queries.requires_grad_(False)


def _teach(model: Any, tokenizer: Any, source: random.Random, steps: int) -> None:
    import torch

    _look_back(model)
    chain = Chain(tokenizer)
    taught = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(taught, betas=(0.9, 0.98))
    for step in range(steps):
        rate = 6e-3 * min(1.0, (step + 1) / 10) * max(0.05, 1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        loss = _loss(model, _lesson(tokenizer, chain, source))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(taught, 1.0)
        optimizer.step()
    for weight in model.parameters():
        weight.requires_grad_(True)


def talker(
    folder: Path, seed: int = 0, *, steps: int = 100, max_length: int = 4096, **config: Any
) -> Path:
    """A small Llama, taught for `steps` steps on one thread, that answers bbh's prompts and stops.

    Its answers run to 80 to 184 tokens, differ from prompt to prompt and end in "So the answer is
    (A)." and a blank line. Same seed, torch and processor: same model. Its vocabulary makes bbh's
    longest prompts some 3,000 tokens, which is why `max_length` is not 2048.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = [" " + " ".join((*OTHERS, *itertools.chain(*ROWS)))] * 400
    heads = [row[0] for row in ROWS[:STARTS]] * 400
    tokenizer = train_tokenizer(
        "llama3", [*prose(), *words, *heads], vocabulary=2048, max_length=max_length
    )
    shape = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.05,
    }
    made = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **(shape | config),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sums, and so the weights, depend on it
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = LlamaForCausalLM(made)
            _teach(model, tokenizer, random.Random(seed), steps)
    finally:
        torch.set_num_threads(threads)
    save_model(folder, model.eval(), tokenizer)
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] != ["talker"] or len(sys.argv) != 3:
        sys.exit("usage: python -m tests.models talker FOLDER")
    print(talker(Path(sys.argv[2])))

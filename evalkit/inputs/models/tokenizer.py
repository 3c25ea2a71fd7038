"""A model's tokenizer, with the rules that lm-eval's `hf` model has for it.

It serves the plan (encoding), the engine (decoding, to find stop strings) and lm-eval's prompts
(the chat template). transformers is imported when a tokenizer is loaded, not before.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, one_of
from evalkit.inputs.chat import texts
from evalkit.inputs.chat.templates import Template
from evalkit.inputs.models import architecture
from evalkit.inputs.models.model import Model
from evalkit.inputs.types import SpecialToken

if TYPE_CHECKING:
    from evalkit.inputs.suite import Suite

DEFAULT_MAX_LENGTH = 2048  # lm-eval's, for a model that says none
# Where ways of splitting a text differ: digits, blanks, signs, letters of other scripts.
PROBES = (
    "Naïve words, 12345.67 and\n\n\tmore   blanks", "it's don't I'll HE'S", "日本語 текст 😀",
    "x_1 = foo(bar)[2]  # done", " leading and trailing ",
)  # fmt: skip
UNSET_LENGTH = 1000000000000000019884624838656  # transformers' "no limit" in tokenizer configs


class Tokenizer:
    """A model's tokenizer with the settings that lm-eval's `hf` model takes from it."""

    def __init__(self, model: Model) -> None:
        from transformers import AutoTokenizer

        what = f"can't load the configuration or the tokenizer of '{model.reference}'"
        where = str(model.folder)
        with architecture.Loading(lambda reason: EvalkitError(f"{what}: {reason}", where=where)):
            self.hf: Any = AutoTokenizer.from_pretrained(
                model.folder, trust_remote_code=model.trust_remote_code
            )
            config = _config(model)
            self.max_length = _max_length(config, self.hf)
        self._folder = model.folder
        self._reference, self.vocabulary = model.reference, getattr(config, "vocab_size", None)
        self.unlike = _unlike(config, self.hf)
        self.hf.model_max_length = UNSET_LENGTH  # no warning for what we cut ourselves
        self.bos_token_id: int | None = self.hf.bos_token_id
        prefix = self.bos_token_id if self.bos_token_id is not None else self.hf.eos_token_id
        if prefix is None:
            raise EvalkitError(
                f"the tokenizer of '{model.reference}' has neither a BOS nor an EOS token"
            )
        self.prefix_token_id: int = prefix
        encoded = self.hf.encode("a")
        self.adds_bos = encoded[:1] == [self.bos_token_id]
        eos = self.hf.eos_token_id
        self.added_eos: int | None = eos if len(encoded) > 1 and encoded[-1] == eos else None
        self._prefix_text = str(self.hf.decode(self.prefix_token_id))
        self._bos_text: str | None = getattr(self.hf, "bos_token", None)
        self._backend = _backend(self.hf)

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""
        if not texts:
            return []
        if self._backend is not None:
            fast = self._backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
            return [encoding.ids for encoding in fast]
        encoded = self.hf(
            list(texts), add_special_tokens=special_tokens, return_attention_mask=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def decode(self, tokens: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each sequence of token ids."""
        texts: list[str] = self.hf.batch_decode(tokens, skip_special_tokens=skip_special_tokens)
        return texts

    def check_vocabulary(self) -> None:
        """EvalkitError where words of the tokenizer's have no embedding. Added tokens may lack one:
        few texts hold any, and one that does is refused when it is tokenised."""
        size = self.vocabulary
        if size is None:
            return
        added = set(self._added.values())
        beyond = [i for i in self.hf.get_vocab().values() if i >= size and i not in added]
        if beyond:
            raise EvalkitError(
                f"{len(beyond):,} tokens of the tokenizer of '{self._reference}' lie beyond the"
                f" model's {size:,} embeddings, token {min(beyond)} first",
                fix="the tokenizer is another model's, or the embeddings were not resized to it",
            )

    def unlike_file(self) -> str | None:
        """A text that transformers' tokenizer reads otherwise than its tokenizer.json says; None
        where they agree, or there is no such file. Some of transformers' classes replace a part of
        what they read, for lm-eval as well."""
        from tokenizers import Tokenizer as Plain

        path = self._folder / "tokenizer.json"
        if self._backend is None or not path.is_file():
            return None
        plain = Plain.from_file(str(path))
        plain.no_truncation()
        plain.no_padding()
        for text in PROBES:
            if (
                plain.encode(text, add_special_tokens=False).ids
                != self.encode([text], special_tokens=False).pop()
            ):
                return text
        return None

    def identity(self) -> dict[str, object]:
        """What decides its token ids besides its files: config.json says which class reads them,
        and some classes change what they have read."""
        backend = getattr(self.hf, "backend_tokenizer", None)
        return {
            "class": type(self.hf).__qualname__,
            "backend": canon.digest_bytes(backend.to_str().encode()) if backend else None,
            "bos": [self.bos_token_id, self.prefix_token_id, self.adds_bos],
        }

    def starts_with_prefix(self, text: str) -> bool:
        """Whether a text to score already starts with the prefix token's own text."""
        return text.startswith(self._prefix_text)

    def starts_with_bos(self, text: str) -> bool:
        """Whether a prompt already starts with the BOS token's own text."""
        return bool(self._bos_text) and text.startswith(str(self._bos_text))

    @property
    def template(self) -> Any:
        """The chat template (text, or several by name); None when there is none."""
        return getattr(self.hf, "chat_template", None)

    def chat_template_for(self, suite: "Suite") -> Template | None:
        """How a suite makes prompts of chats; None where it applies no template. Raises
        EvalkitError when neither the model nor the suite has a template, and for a name that is
        none of the model's."""
        wanted, chat = suite.apply_chat_template, suite.chat
        if not wanted:
            return None
        if chat.text is not None:
            self.hf.chat_template = chat.text
        if not self.template:
            raise EvalkitError(
                "the suite applies a chat template but the model's tokenizer has none",
                fix="set apply_chat_template: false in the suite, or choose a chat model",
            )
        known = self.template if isinstance(self.template, dict) else {"default": self.template}
        if chat.text is None:
            name = wanted if isinstance(wanted, str) else "default"
            if name not in known:
                hint = one_of(name, list(known))
                raise EvalkitError(f"the model has no chat template '{name}'", fix=hint)
            self.hf.chat_template = known[name]
        return Template(self.hf, chat.args, chat.now, suite.system_instruction)

    def token_of(self, word: str) -> int | None:
        """The id of the one token that a word is, special or added; None where it is none."""
        return self._added.get(word)

    @cached_property
    def _added(self) -> dict[str, int]:
        found: dict[str, int] = self.hf.get_added_vocab()
        return found

    def is_special(self, word: str) -> bool:
        """Whether a word is a special token, which decoding may skip."""
        return self.token_of(word) in self.hf.all_special_ids

    def thought_words(self) -> tuple[str, str] | None:
        """What begins and ends a thought, where the chat template or the vocabulary says so."""
        templates = self.template.values() if isinstance(self.template, dict) else [self.template]
        text = "".join(str(template or "") for template in templates)
        return texts.thought_words(text, self._added)

    def reported(self) -> dict[str, object]:
        """Return what lm-eval's results file says of a tokenizer."""
        tokens = {
            f"tokenizer_{name}_token": [
                getattr(self.hf, f"{name}_token"),
                str(getattr(self.hf, f"{name}_token_id")),
            ]
            for name in ("pad", "eos", "bos")
        }
        return {
            **tokens,
            "eot_token_id": self.hf.eos_token_id,
            "max_length": self.max_length,
            "chat_template": self.template,
        }


def _backend(hf: Any) -> Any:
    """Return what encodes for transformers' tokenizer, faster; None where that would change ids."""
    from transformers import PreTrainedTokenizerFast

    for name in ("__call__", "_encode_plus"):
        if getattr(type(hf), name) is not getattr(PreTrainedTokenizerFast, name, None):
            return None
    backend = hf.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = hf.split_special_tokens
    return backend


def _config(model: Model) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=model.trust_remote_code)
    return getattr(config, "text_config", None) or config


def _unlike(config: Any, tokenizer: Any) -> dict[str, SpecialToken]:
    """Return the special tokens of which tokenizer and config name different ids, by name."""
    found: dict[str, SpecialToken] = {}
    for name in ("bos", "eos"):
        own, stated = (getattr(each, f"{name}_token_id", None) for each in (tokenizer, config))
        if stated is not None and own not in (stated if isinstance(stated, list) else [stated]):
            found[f"{name}_token"] = {"tokenizer": own, "config": stated}
    return found


def _max_length(inner: Any, tokenizer: Any) -> int:
    """The model's context in tokens, looked for where lm-eval's `resolve_max_length` does."""
    for key in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(inner, key, None) is not None:
            return int(getattr(inner, key))
    stated = tokenizer.model_max_length
    return int(stated) if stated is not None and stated != UNSET_LENGTH else DEFAULT_MAX_LENGTH

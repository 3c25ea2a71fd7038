"""A model's tokenizer, with the rules that lm-eval's `hf` model has for it.

It serves the plan (encoding), the engine (decoding, to find stop strings) and lm-eval's prompts
(the chat template). transformers is imported when a tokenizer is loaded, not before.
"""

from collections.abc import Callable, Sequence
from typing import Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, one_of
from evalkit.inputs.model import Model

DEFAULT_MAX_LENGTH = 2048  # lm-eval's, for a model that says none
UNSET_LENGTH = 1000000000000000019884624838656  # transformers' "no limit" in tokenizer configs


class Tokenizer:
    """A model's tokenizer with the settings that lm-eval's `hf` model takes from it."""

    def __init__(self, model: Model) -> None:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoTokenizer

        broken = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(
                model.folder, trust_remote_code=model.trust_remote_code
            )
            self.max_length = _max_length(model, self.hf)
        except (*broken, StrictDataclassError) as error:
            reason = str(error).split("\n")[0]
            raise EvalkitError(
                f"can't load the configuration or the tokenizer of '{model.reference}': {reason}",
                where=str(model.folder),
            ) from None
        self.hf.model_max_length = UNSET_LENGTH  # no warning for what we cut ourselves
        self.bos_token_id: int | None = self.hf.bos_token_id
        prefix = self.bos_token_id if self.bos_token_id is not None else self.hf.eos_token_id
        if prefix is None:
            raise EvalkitError(
                f"the tokenizer of '{model.reference}' has neither a BOS nor an EOS token"
            )
        self.prefix_token_id: int = prefix
        self.adds_bos = self.hf.encode("a")[:1] == [self.bos_token_id]
        self._prefix_text = str(self.hf.decode(self.prefix_token_id))
        self._bos_text: str | None = getattr(self.hf, "bos_token", None)
        self._backend = _backend(self.hf)

    def encode(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
        """Token ids of each text."""
        if not texts:
            return []
        if self._backend is not None:
            fast = self._backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
            return [one.ids for one in fast]
        encoded = self.hf(
            list(texts), add_special_tokens=special_tokens, return_attention_mask=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def decode(self, tokens: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each sequence of token ids."""
        texts: list[str] = self.hf.batch_decode(tokens, skip_special_tokens=skip_special_tokens)
        return texts

    def identity(self) -> dict[str, Any]:
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

    def chat_template_for(self, wanted: bool | str) -> Callable[..., str] | None:
        """How a suite whose `apply_chat_template` is `wanted` makes prompts; None for no template.

        Raises EvalkitError when the model has no template, or several and none of that name.
        """
        if not wanted:
            return None
        if not self.template:
            raise EvalkitError(
                "the suite applies a chat template but the model's tokenizer has none",
                fix="set apply_chat_template: false in the suite, or choose a chat model",
            )
        if isinstance(self.template, dict):
            name = wanted if isinstance(wanted, str) else "default"
            if name not in self.template:
                hint = one_of(name, list(self.template))
                raise EvalkitError(f"the model has no chat template '{name}'", fix=hint)
            self.hf.chat_template = self.template[name]
        return self.apply_chat_template

    def reported(self) -> dict[str, Any]:
        """What lm-eval's results file says of a tokenizer."""
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

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as one prompt; without the system message where the template refuses one."""
        import jinja2

        def render(messages: list[dict[str, str]]) -> str:
            text: str = self.hf.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return text

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([message for message in chat_history if message["role"] != "system"])


def _backend(hf: Any) -> Any:
    """What encodes for a tokenizer of transformers' where that changes nothing of it: asked itself,
    it can leave out the offsets, which nobody reads. None where it does."""
    from transformers import PreTrainedTokenizerFast

    for name in ("__call__", "_encode_plus"):
        if getattr(type(hf), name) is not getattr(PreTrainedTokenizerFast, name, None):
            return None
    backend = hf.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = hf.split_special_tokens
    return backend


def _max_length(model: Model, tokenizer: Any) -> int:
    """The model's context in tokens, looked for where lm-eval's `resolve_max_length` does."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.folder, trust_remote_code=model.trust_remote_code)
    inner = getattr(config, "text_config", None) or config
    for key in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(inner, key, None) is not None:
            return int(getattr(inner, key))
    stated = tokenizer.model_max_length
    return int(stated) if stated is not None and stated != UNSET_LENGTH else DEFAULT_MAX_LENGTH

"""Token ids are those that transformers gives, by whichever way they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalkit.inputs.models import model as models
from evalkit.inputs.models.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "a",
    "Zwölf Boxkämpfer\n\njagen Viktor <s> quer",
    "x = 1\r\n\ty  = 2 </s>",
    "😀 e\u0301",
]


@pytest.mark.parametrize("family", ["llama3", "gpt2", "sentencepiece"])
def test_the_librarys_own_encoding_is_transformers(
    family: str, tiny_model: Callable[..., Path]
) -> None:
    tokenizer = Tokenizer(models.resolve(str(tiny_model(tokenizer=family))))
    texts = [*TEXTS, str(tokenizer.hf.bos_token) + "one", "two" + str(tokenizer.hf.eos_token)]
    for special_tokens in (True, False):
        theirs = tokenizer.hf(texts, add_special_tokens=special_tokens)["input_ids"]
        assert tokenizer.encode(texts, special_tokens=special_tokens) == theirs


def test_a_class_that_changes_what_it_reads_is_asked_itself(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tokenizer="llama3")
    kind = type(Tokenizer(models.resolve(str(folder))).hf)

    class Own(kind):  # type: ignore[misc, valid-type]
        def _encode_plus(self, text: Any, **settings: Any) -> Any:
            small = text.lower() if isinstance(text, str) else [one.lower() for one in text]
            return super()._encode_plus(small, **settings)

    plain = Tokenizer(models.resolve(str(folder)))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", Own.from_pretrained)
    own = Tokenizer(models.resolve(str(folder)))
    assert own.encode(["A B"], special_tokens=True) == plain.encode(["a b"], special_tokens=True)
    assert own.encode(["A B"], special_tokens=True) != plain.encode(["A B"], special_tokens=True)

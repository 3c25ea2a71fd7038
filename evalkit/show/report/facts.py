"""The head of a record's page: in a line what ran on what, the scores as text to copy, and what the
page's words mean.
"""

from typing import Any

from evalkit.record.reading import output, score_table
from evalkit.show.export import tables
from evalkit.show.rows import headline

Fact = tuple[str, str]
# Words that not everybody knows, in a sentence each: shown where they stand.
TERMS = {
    "shots": "Worked examples that stand in the prompt before the question.",
    "± s.e.": "Standard error: how far the score would vary over other questions of the same kind.",
    "95% interval": "Where the score would lie, 19 times of 20, had many more such questions been"
    " asked.",
    "Guessing": "What choosing at random scores: one over the number of choices; 0 for free text.",
    "acc": "Share of questions whose likeliest choice is the right one.",
    "acc_norm": "The same with each choice's log-likelihood divided by its length in bytes.",
    "exact_match": "Share of texts whose extracted answer is the expected one, letter by letter.",
    "margin": "By how many nats the chosen answer leads the next one.",
    "nats": "Unit of log-probability, by the natural logarithm: 0.1 nats are a factor of 1.1.",
    "CONSISTENT": "Nothing in the record contradicts itself. Only its author has seen the run.",
    "SIGNED": "Consistent, and signed by a key on the reader's list.",
    "WITNESSED": "Somebody else replayed some of its answers on the model.",
    "REPRODUCED": "Somebody else ran all of it again, with the same outcome.",
    "BROKEN": "Something in the record contradicts itself: its scores can't be relied on.",
    "Holm": "A p-value made larger for how many tests were made.",
    "p": "How often two equal runs would differ by at least as much.",
}


def line(record: dict[str, Any]) -> list[Fact]:
    """(name, value) of what a reader asks first; what is unknown is left out here and stands below
    with its reason."""
    model, environment = record["model"], record.get("environment", {})
    parameters, code = model.get("parameters"), record.get("code", {})
    found = [
        ("revision", _short(model.get("revision"))),
        ("parameters", _count(parameters) if isinstance(parameters, int) else ""),
        ("dtype", _said(record.get("numerics", {}).get("dtype"))),
        ("hardware", _hardware(environment)),
        ("image", _short(_digest(environment.get("image")))),
        ("evalkit", _said(environment.get("versions", {}).get("evalkit"))),
        ("commit", _short(code.get("commit"))),
        ("date", str(record["created"] or "")[:10]),
    ]
    return [(name, value) for name, value in found if value]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _short(value: Any) -> str:
    text = _said(value).removeprefix("sha256:")
    is_hex = len(text) >= 40 and all(char in "0123456789abcdef" for char in text)
    return text[:12] if is_hex else text


def _digest(image: Any) -> Any:
    return image.get("digest") if isinstance(image, dict) else image


def _count(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _hardware(environment: dict[str, Any]) -> str:
    gpus = environment.get("gpu")
    if isinstance(gpus, list) and gpus:
        names = [str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu) for gpu in gpus]
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())
    return _said(environment.get("cpu"))


def copies(record: dict[str, Any], mark: str) -> list[Fact]:
    """The scores as LaTeX and Markdown, and the record as a BibTeX entry."""
    rows = [headline(record, mark)]
    return [
        ("LaTeX", tables.to_latex(rows)),
        ("Markdown", tables.to_markdown(rows)),
        ("BibTeX", bibtex(record, mark)),
    ]


def bibtex(record: dict[str, Any], mark: str) -> str:
    """An entry that names the record by its ids."""
    name = output.latex(score_table.model_name(record))
    suite, run = output.latex(record["suite"]["name"]), record["ids"]["run"]
    title = f"{mark}: {name} on {suite}" if mark else f"{name} on {suite}"
    year = str(record["created"] or "")[:4]
    lines = [
        f"@misc{{evalkit-{run[7:19]},",
        f"  title = {{{{{title}}}: an evaluation record}},",
        *([f"  year = {{{year}}},"] if year else []),
        f"  note = {{evalkit record, run {run}, answers {record['ids']['answers']}}},",
        "}",
    ]
    return "\n".join(lines) + "\n"

"""The head of a record's page: the scores as text to copy, and what the page's words mean."""

from typing import Any

from evalkit.record.reading import output
from evalkit.record.reading.scores import score_table
from evalkit.show.export import tables
from evalkit.show.facts import Fact
from evalkit.show.scores.rows import headline

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

"""A record's scores as the report shows them: `score_table`'s, with what guessing would score by
the samples; each member of the suite with its leaf tasks; the scores as text to copy; and what the
page's words mean.
"""

from dataclasses import dataclass, replace

from evalkit.base import statistics
from evalkit.record.reading import output, score_table
from evalkit.record.reading.score_table import Score
from evalkit.record.types import AnyRecord
from evalkit.show.export import tables
from evalkit.show.report.parts.leaves import Leaf
from evalkit.show.source import Fact, headline_rows

# Technical words of the page, each explained in a sentence where it stands.
TERMS = {
    "Shots": "Worked examples that stand in the prompt before the question.",
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


@dataclass(frozen=True, slots=True)
class Family:
    """A member of the suite with all its leaf tasks."""

    name: str
    leaves: list[Leaf]
    scores: list[Score]  # of the leaf tasks, best first

    @property
    def num_documents(self) -> int:
        """Documents of all its leaf tasks."""
        return sum(len(leaf.ids) for leaf in self.leaves)

    @property
    def prefix(self) -> int:
        """The length of what all its leaf tasks' names begin with, up to an underscore."""
        names = [leaf.name for leaf in self.leaves]
        first, last = min(names), max(names)  # what these two share, all share
        alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
        return first[:alike].rfind("_") + 1


def headline(record: AnyRecord, leaves: dict[str, Leaf]) -> list[Score]:
    """Return the scores of the suite's members, a group's subgroups below it."""
    return [_with_chance(record, score, leaves) for score in score_table.scores(record)]


def families(record: AnyRecord, leaves: dict[str, Leaf]) -> list[Family]:
    """Return the suite's members, in order, with their leaf tasks from best to worst."""
    made = []
    for depth, name in score_table.rows(record):
        members = [leaf for leaf in score_table.below(record, name) if leaf in leaves]
        if depth or not members:
            continue
        scores = [
            _with_chance(record, score, leaves)
            for leaf in members
            for score in score_table.of(record, leaf)
            if score.headline
        ]
        ordered = sorted(scores, key=_worst_last)
        made.append(Family(name, [leaves[leaf] for leaf in members], ordered))
    return made


def _worst_last(score: Score) -> float:
    return score.value if score.higher_is_better is False else -score.value


def _with_chance(record: AnyRecord, score: Score, leaves: dict[str, Leaf]) -> Score:
    if not score.share:
        return score
    return replace(score, chance=_chance(score_table.below(record, score.task), leaves))


def _chance(members: list[str], leaves: dict[str, Leaf]) -> float | None:
    read = [leaves[name] for name in members if name in leaves and leaves[name].ids]
    if not read:
        return None
    sizes = [len(leaf.ids) for leaf in read]
    return statistics.weighted_mean([leaf.chance for leaf in read], sizes)


def chosen(family: Family) -> tuple[list[float], list[float], list[float]]:
    """Return, for a family's documents with choices: confidences, margins, and scores."""
    sure, margins, rights = [], [], []
    for leaf in family.leaves:
        pairs = zip(leaf.margins, leaf.scores, strict=True)
        chosen_pairs = [(margin, score) for margin, score in pairs if margin is not None]
        for confidence, (margin, score) in zip(leaf.confidences, chosen_pairs, strict=True):
            if score is not None:
                sure.append(confidence)
                margins.append(margin)
                rights.append(score)
    return sure, margins, rights


def copies(record: AnyRecord, mark: str) -> list[Fact]:
    """Return the scores as LaTeX and Markdown, and the record as a BibTeX entry."""
    scores = [headline_rows(record, mark)]
    return [
        ("LaTeX", tables.to_latex(scores)),
        ("Markdown", tables.to_markdown(scores)),
        ("BibTeX", _bibtex(record, mark)),
    ]


def _bibtex(record: AnyRecord, mark: str) -> str:
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

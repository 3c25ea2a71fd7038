"""A complete run's answers, of one leaf task at a time: a million of them need not be in memory.

A batch's answers are all of one leaf task, so the journal says where each leaf's stand. What the
record says of all answers is noted as they pass.
"""

import math
from collections.abc import Callable

from evalkit.base import canon
from evalkit.inputs.chat.texts import Texts
from evalkit.plan.store import Plan
from evalkit.record import journal


class Answers:
    """The answers to a plan's requests.

    `digests`: of each leaf task's answers; `texts`: what is counted of each leaf task's texts; then
    what else the record's health section counts: `empty` texts, `nan_documents`, and `ties` for the
    best answer by leaf task. `advance` is told of progress in answers.
    """

    def __init__(
        self, plan: Plan, done: journal.Journal, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self.digests: dict[str, str] = {}
        self.texts: dict[str, Texts] = {}
        self.empty = self.nan_documents = 0
        self.ties: dict[str, int] = {}
        self._done, self._advance = done, advance
        self._without_text: dict[str, list[str]] = plan.body["empty_texts"]
        self._batches: dict[str, list[str]] = {}
        for batch, entry in plan.entries.items():
            self._batches.setdefault(entry["task"], []).append(batch)

    def of(self, leaf: str) -> dict[str, journal.Answer]:
        """A leaf task's answers by request id, read again from the disk; to be asked for once."""
        parts = self._done.answers(self._batches.get(leaf, []))
        self._advance(len(parts))
        answers = journal.assemble(parts)
        for request in self._without_text.get(leaf, []):
            answers[f"{leaf}/{request}"] = dict(journal.NOTHING)
        self.digests |= journal.digests(answers)
        self._note(leaf, answers)
        return answers

    def _note(self, leaf: str, answers: dict[str, journal.Answer]) -> None:
        nan: set[str] = set()
        scored: dict[str, list[float]] = {}
        for request, answer in answers.items():
            document = request.rsplit("/", 2)[0]
            if "text" in answer:
                self.empty += not answer["text"].strip()
                doc_id = int(document.rsplit("/", 1)[1])
                self.texts.setdefault(leaf, Texts()).add(doc_id, answer)
                is_nan = "nan" in answer["logprobs"]
            else:
                value = canon.number(answer["loglikelihood"])
                scored.setdefault(document, []).append(value)
                is_nan = math.isnan(value)
            if is_nan:
                nan.add(document)
        self.nan_documents += len(nan)
        self.ties[leaf] = sum(values.count(max(values)) > 1 for values in scored.values())

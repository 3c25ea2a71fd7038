"""A gate for a pipeline: what a policy asks of the second run against the first.

The policy is a YAML file as schemas/gate.schema.json says. What it asks and can't be judged (a task
that was not compared, an error that is not known) is not met: a gate never opens for want of
evidence, and never for an evaluation that contradicts itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from evalkit.base import statistics
from evalkit.base.errors import EvalkitError, Exit
from evalkit.judge.compare import Comparison, Pair, Row
from evalkit.judge.verify import Report, plain, verify
from evalkit.judge.verify.policy import read_rules
from evalkit.record.reading import lm_eval

Rules = dict[str, float]  # bounds by the rule's name; a rule without a bound is true


class Policy(TypedDict, total=False):
    """The content of a gate's policy; schemas/gate.schema.json describes it."""

    every: Rules
    tasks: dict[str, Rules]
    max_flips: float
    same_prompts: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """One rule's outcome for one task (or the whole pair) of one run."""

    run: str
    task: str
    rule: str
    met: bool
    detail: str

    def __str__(self) -> str:
        where = f"{self.run} {self.task}".strip()
        return f"{'MET' if self.met else 'NOT MET':7}  {where}: {self.rule} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Gate:
    """What a policy says of a comparison."""

    rulings: tuple[Ruling, ...]

    @property
    def met(self) -> bool:
        """Whether every rule is met."""
        return all(ruling.met for ruling in self.rulings)

    @property
    def exit_code(self) -> Exit:
        """0 met, 1 not."""
        return Exit.OK if self.met else Exit.FAILED

    def lines(self) -> list[str]:
        """A line a rule, those not met first, then the verdict."""
        lines = [*map(str, sorted(self.rulings, key=lambda ruling: ruling.met))]
        failed = sum(not ruling.met for ruling in self.rulings)
        count = len(self.rulings)
        return [*lines, f"GATE {'MET' if self.met else f'NOT MET: {failed} of {count} rules'}"]


def read(path: Path) -> Policy:
    """Read a gate's policy; EvalkitError says what in it is not as the schema says."""
    policy: Policy = read_rules(path, "gate")
    return policy


def verdicts(paths: Sequence[Path]) -> list[Report]:
    """What `verify` finds of each evaluation that is compared, in their order."""
    return [_verified(path) for path in paths]


def _verified(path: Path) -> Report:
    if (path / "record.json").is_file():
        return verify(path)
    found = lm_eval.find(path)
    return plain.verify(found.folder, f"results_{found.time}.json", asked=False)


def check(comparison: Comparison, policy: Policy, reports: Sequence[Report]) -> Gate:
    """Judge every pair by the policy. `reports`: `verdicts` of the compared evaluations."""
    rules = [policy.get("every", {}), *policy.get("tasks", {}).values()]
    if not comparison.teacher and any("min_kept" in each for each in rules):
        raise EvalkitError("min_kept needs a teacher", fix="add --teacher")
    broken = [
        Ruling(side.label, "", "does not contradict itself", False, report.verdict)
        for side, report in zip(comparison.sides, reports, strict=True)
        if not report.consistent
    ]
    return Gate((*broken, *(r for pair in comparison.pairs for r in _pair(pair, policy))))


def _pair(pair: Pair, policy: Policy) -> Iterator[Ruling]:
    run = pair.after.label
    named = policy.get("tasks", {})
    tops = {row.task: row for row in pair.tops}
    for name in named.keys() - tops.keys():
        yield Ruling(run, name, "was compared", False, "no such top-level task in both runs")
    if "every" in policy:
        for item in pair.left_out:
            yield Ruling(run, item.task, "was compared", False, item.reason)
    for name, row in tops.items():
        for rule, bound in named.get(name, policy.get("every", {})).items():
            told = f"{rule} {bound}".removesuffix(" True")
            yield Ruling(run, name, told, *_rule(pair, row, rule, bound))
    if "max_flips" in policy:
        total = sum(row.n for row in pair.rows if row.headline and not row.is_group)
        share, bound = len(pair.flips) / max(total, 1), policy["max_flips"]
        told = f"{len(pair.flips):,} of {total:,} documents, {share:.2%}"
        yield Ruling(run, "", f"max_flips {bound}", share <= bound, told)
    if "same_prompts" in policy:
        unlike = [note for note in pair.notes if "other prompts" in note]
        yield Ruling(run, "", "same_prompts", not unlike, unlike[0] if unlike else "they are")


def _rule(pair: Pair, row: Row, rule: str, bound: float) -> tuple[bool, str]:
    """Return whether a rule is met, and the figure that says so."""
    sign = 1 if row.higher_is_better else -1
    better = sign * row.difference.value
    if rule == "max_drop":
        return better >= -bound, f"{better:+.4f}"
    if rule == "min_score":
        return row.after >= bound, f"{row.after:.4f}"
    if rule == "no_significant_drop":
        p = row.adjusted
        if p is None:
            return False, "its error is not known"
        return better >= 0 or p >= statistics.ALPHA, f"{better:+.4f}, Holm p {p:.4f}"
    if rule == "not_worse_by":
        interval = row.difference.interval(1 - 2 * statistics.ALPHA)
        if interval is None:
            return False, "its error is not known"
        worst = min(sign * interval[0], sign * interval[1])
        return worst > -bound, f"no worse than {worst:+.4f}"
    assert rule == "min_kept", f"a rule of the schema, not {rule}"
    kept = next((entry for entry in pair.kept if entry.task == row.task), None)
    if kept is None or kept.share is None:
        return False, "the teacher is at chance"
    return kept.share >= bound, f"{kept.share:.1%} kept"

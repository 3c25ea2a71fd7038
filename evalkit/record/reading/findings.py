"""What verifying found: one line a check, failures first, and a last line that claims no more than
was seen.

Text that comes from a record is shown here and nowhere else, with its control characters escaped
and its length cut, so that a record can't write to a terminal.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from evalkit.base.errors import Exit, printable

FEW = 3  # problems told in words; the rest is counted
_MAX_TEXT = 160


class Status(StrEnum):
    """How a check ended. SKIP: it could not be made here, and the detail says why."""

    PASS = "PASS"
    FAIL = "FAIL"
    WARN = "WARN"
    SKIP = "SKIP"


def shown(text: object) -> str:
    """Text of a record made fit for a terminal: printable, one line, not long."""
    plain = str(text)[: 4 * _MAX_TEXT]
    plain = printable(plain)
    return plain if len(plain) <= _MAX_TEXT else plain[:_MAX_TEXT] + "..."


def few(names: Collection[object], count: int | None = None) -> str:
    """`a, b, c and 54 more`: the first few of some sorted names."""
    first = sorted(map(str, names))[:FEW]
    total = len(names) if count is None else count
    text = ", ".join(map(shown, first))
    return f"{text} and {total - len(first):,} more" if total > len(first) else text


def difference(found: set[str], wanted: set[str], what: str) -> str:
    """How two sets of names differ, or nothing: `2 leaf tasks missing: a, b; 1 too many: c`."""
    missing, extra = wanted - found, found - wanted
    parts = []
    if missing:
        parts.append(f"{len(missing):,} {what} missing: {few(missing)}")
    if extra:
        parts.append(f"{len(extra):,} {what} too many: {few(extra)}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Check:
    """One check's outcome. `caveat`: what the last line says because of it."""

    name: str
    status: Status
    detail: str
    caveat: str = ""

    def __str__(self) -> str:
        return f"{self.status:4}  {self.name:<12}  {self.detail}"

    def to_json(self) -> dict[str, str]:
        """For programs."""
        return {"name": self.name, "status": self.status.value, "detail": self.detail}


@dataclass(slots=True)
class Findings:
    """The problems of one check: the first few in words, all of them counted."""

    name: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, problem: str, *, first: bool = False) -> None:
        """Note a problem; an empty one is none. `first`: tell it before all others."""
        if problem:
            self.count += 1
            self.first.insert(0 if first else len(self.first), problem)
            del self.first[FEW:]

    def add_unequal(self, what: str, recorded: object, found: object) -> None:
        """Note a problem where what the record says is not what was found."""
        if recorded != found:
            self.add(f"{what} is {shown(found)}, recorded {shown(recorded)}")

    def check(self, passed: str) -> Check:
        """FAIL with the problems, or PASS with what was checked."""
        if not self.count:
            return Check(self.name, Status.PASS, passed)
        more = self.count - len(self.first)
        detail = "; ".join(self.first) + (f"; and {more:,} more" if more else "")
        return Check(self.name, Status.FAIL, detail)


@dataclass(frozen=True, slots=True)
class Seen:
    """How much of a record somebody has seen: by each key, samples or (None) all of it."""

    by_key: Mapping[str, int | None]

    @property
    def keys(self) -> int:
        """By how many keys."""
        return len(self.by_key)

    @property
    def samples(self) -> int | None:
        """The most samples that one of the keys has seen; None for all."""
        counts = [count for count in self.by_key.values() if count is not None]
        return max(counts) if len(counts) == self.keys else None

    def keys_with(self, samples: int) -> int:
        """Return how many of the keys have seen so many samples each."""
        return sum(count is None or count >= samples for count in self.by_key.values())

    def merged(self, other: "Seen | None") -> "Seen":
        """Return this and what else was seen, of each key the most."""
        most = dict(self.by_key)
        for key, samples in other.by_key.items() if other else ():
            before = most.get(key, 0)
            most[key] = None if before is None or samples is None else max(before, samples)
        return Seen(most)


def seen_by(found: Mapping[str, Seen]) -> str:
    """`bob (100 samples), carol, by 2 keys`."""
    told = [
        name if each.samples is None else f"{name} ({each.samples:,} samples)"
        for name, each in found.items()
    ]
    keys = sum(each.keys for each in found.values())
    return few(told) + (f", by {keys:,} keys" if keys > 1 else "")


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is known to have signed, audited and reproduced a record: names on the reader's list, and
    the fingerprints of the author's keys that are not on it. `unproven`: who audited or reproduced
    one that no author has signed, and so may be the author."""

    authors: Collection[str] = ()
    witnesses: Mapping[str, Seen] = field(default_factory=dict)
    reproducers: Mapping[str, Seen] = field(default_factory=dict)
    unlisted: Collection[str] = ()
    unproven: Mapping[str, Seen] = field(default_factory=dict)
    sealed: str = ""  # what is known of a seal, in words

    def __str__(self) -> str:
        return f"{self._vouched()}; {self.sealed}" if self.sealed else self._vouched()

    def _vouched(self) -> str:
        signed = f"; signed by {few(self.authors)}" if self.authors else ""
        if not signed and self.unlisted:
            signed = f"; signed by a key that is not on your list ({few(self.unlisted)})"
        if self.reproducers:
            audited = f"; witnessed by {seen_by(self.witnesses)}" if self.witnesses else ""
            return f"REPRODUCED by {seen_by(self.reproducers)}{audited}{signed}"
        if self.witnesses:
            return f"WITNESSED by {seen_by(self.witnesses)}{signed}"
        if self.authors:
            names = few(self.authors)
            return f"SIGNED by {names}: nothing in it contradicts itself; nobody else saw it"
        told = "CONSISTENT: nothing in it contradicts itself"
        if self.unproven:
            keys = sum(each.keys for each in self.unproven.values())
            only = "by one key only" if keys == 1 else "by no author"
            return f"{told}; signed {only}: {seen_by(self.unproven)} may be its author"
        if self.unlisted:
            return f"{told}; its signer is not on your list ({few(self.unlisted)})"
        return f"{told}; only its author saw it"


# Checks that say of a whole record that it is not what its reader asks for.
UNMET = {"signer", "policy"}


@dataclass(frozen=True, slots=True)
class Report:
    """Every check, in the order made. `advice` says what to do about a record of another version of
    the schema; `caveat` is what a reader of a consistent record must know all the same."""

    checks: list[Check]
    advice: str = ""
    caveat: str = ""
    standing: Standing = field(default_factory=Standing)
    unfinished: bool = False  # a run without its record: there is nothing to judge yet

    @property
    def readable(self) -> bool:
        """Whether the record is of the version of the schema that this evalkit reads."""
        return not self.advice

    @property
    def consistent(self) -> bool:
        """Whether no check failed."""
        return all(check.status is not Status.FAIL for check in self.checks)

    @property
    def exit_code(self) -> Exit:
        """0 consistent, 1 broken, 2 not ours to judge, 3 not finished."""
        if self.unfinished:
            return Exit.MISSING
        if not self.readable:
            return Exit.USAGE
        return Exit.OK if self.consistent else Exit.FAILED

    @property
    def verdict(self) -> str:
        """The last line: what is known, not "true"."""
        if self.unfinished:
            return "UNFINISHED: it has no record yet; `evalkit status` says how far it is"
        if not self.readable:
            return f"UNREADABLE: {self.advice}"
        failed = [check.name for check in self.checks if check.status is Status.FAIL]
        names = ", ".join(dict.fromkeys(failed))
        if set(failed) - UNMET - {"dispute"}:
            return f"BROKEN: {len(failed)} of {len(self.checks)} checks failed ({names})"
        if "dispute" in failed:
            return f"DISPUTED: {next(c.detail for c in self.checks if c.name == 'dispute')}"
        if failed:
            return f"UNMET: nothing in it contradicts itself, but it is not what you ask ({names})"
        return f"{self.standing}; {self.caveat}" if self.caveat else str(self.standing)

    def to_json(self) -> dict[str, object]:
        """The checks, the verdict and the exit code, for programs."""
        return {
            "checks": [check.to_json() for check in self.checks],
            "signed_by": sorted(self.standing.authors),
            "witnessed_by": sorted(self.standing.witnesses),
            "reproduced_by": sorted(self.standing.reproducers),
            "verdict": self.verdict,
            "exit_code": int(self.exit_code),
        }

    def lines(self) -> list[str]:
        """A line a check, failures first, then the verdict."""
        first = [str(check) for check in self.checks if check.status is Status.FAIL]
        rest = [str(check) for check in self.checks if check.status is not Status.FAIL]
        return [*first, *rest, self.verdict]

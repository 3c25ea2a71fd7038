"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """PASS; WARN: a run may fail or be slow; FAIL: a run will fail."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's line. `fix` says what to do; only what passes needs none."""

    name: str
    status: Status
    found: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status is Status.PASS, f"{self.name} says nothing to do"

    def __str__(self) -> str:
        line = f"{self.status}  {self.name:<13} {self.found}"
        return f"{line}: {self.fix}" if self.fix else line


def passed(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, Status.PASS, found)


def warned(name: str, found: str, fix: str) -> Finding:
    """It may not be."""
    return Finding(name, Status.WARN, found, fix)


def failed(name: str, found: str, fix: str) -> Finding:
    """It is not."""
    return Finding(name, Status.FAIL, found, fix)

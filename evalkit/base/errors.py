"""The error that evalkit raises for a user's mistake, and the exit codes.

It is raised anywhere, caught once in `cli.run`, and printed as one line: what is wrong, where, and
what to do next.
"""

from enum import IntEnum


class Exit(IntEnum):
    """The exit status of the command line (make only promises zero or not)."""

    OK = 0
    FAILED = 1  # a check failed
    USAGE = 2  # wrong input
    MISSING = 3  # something needed is missing, can't be reached or is locked
    INCONCLUSIVE = 4
    BUG = 70
    STOPPED = 75  # stopped with everything so far kept; the same command continues


def printable(text: object) -> str:
    """Return a text with unprintable characters escaped, so that it can't control a terminal."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; empty where it has none."""
    return (str(error).strip().splitlines() or [""])[0]


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode()


class EvalkitError(Exception):
    """A user's mistake or a missing thing: one line, no traceback.

    `what` is a full sentence without its period; `where` names the file, key or command; `fix`
    says what to do next; `code` is the process's exit status.
    """

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", code: Exit = Exit.USAGE
    ) -> None:
        self.what, self.where, self.fix, self.code = what, where, fix, code
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.what} ({self.where})" if self.where else self.what
        line = f"{line}: {self.fix}" if self.fix else line
        return printable(" ".join(line.split()))


def one_of(name: str, choices: list[str]) -> str:
    """Return a hint for a mistyped name: the nearest valid names, or the first few of all."""
    from difflib import get_close_matches

    near = get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        return "did you mean " + ", ".join(near) + "?"
    return "choose from " + ", ".join(sorted(choices)[:12])


def not_installed(package: str) -> EvalkitError:
    """Return the error for a package that evalkit does without until somebody asks for it."""
    fix = f"run `pip install {package}`"
    return EvalkitError(f"{package} is not installed", fix=fix, code=Exit.MISSING)


def no_right(path: object) -> EvalkitError:
    """Return the error for a file or folder that the user may not read or write."""
    fix = "ask its owner, who shares runs with a group by --group, or for a pack (`evalkit pack`)"
    what = "there is no right to read or write this"
    return EvalkitError(what, where=str(path), fix=fix, code=Exit.MISSING)

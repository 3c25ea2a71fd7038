"""Groups of tasks, as lm-eval nests them: which leaf tasks are below one.

A stranger's groups may name each other twice at every level, or in a circle. So each is walked
once, and how far all walks go together is limited.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

MAX_STEPS = 5_000_000

Children = Mapping[str, Sequence[str]]


@dataclass(slots=True)
class Groups:
    """The members of each group by its name, and the names of the leaf tasks there are."""

    children: Children
    leaves: Collection[str]
    _steps: int = field(default=0)

    def below(self, name: str) -> list[str]:
        """The leaf tasks of a group, or of a leaf task itself, each once and in order; unknown
        names and groups inside themselves are passed over. ValueError over the limit of steps."""
        found: dict[str, None] = {}
        pending, seen = [name], set()
        while pending:
            each = pending.pop()
            if each in seen:
                continue
            seen.add(each)
            if each in self.leaves:
                found[each] = None
                continue
            members = self.children.get(each, ())
            self._steps += len(members)
            if self._steps > MAX_STEPS:
                raise ValueError(f"groups are over the limit of {MAX_STEPS:,} members in all")
            pending += reversed(members)
        return list(found)

    def problem(self) -> str:
        """What is wrong with the groups: a member that is nothing, or a circle; or nothing."""
        for name in sorted(self.children):
            for member in self.children[name]:
                if member not in self.leaves and member not in self.children:
                    return f"{member} is no task or group of this record"
        try:
            TopologicalSorter({n: set(self.children[n]) for n in self.children}).prepare()
        except CycleError as error:
            return f"{error.args[1][0]} is a group inside itself"
        return ""


def of_record(record: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]]) -> Groups:
    """A record's groups."""
    children = {name: entry["subtasks"] for name, entry in record["groups"].items()}
    return Groups(children, record["tasks"].keys())

"""What a stranger wrote, read within limits: YAML of plain values, groups that name each other.

A key that stands twice is refused. A date is text, and so is `1:30`, which YAML 1.1 takes for a
number of minutes and reads in quadratic time. There are no aliases, which can blow up, no deep
nesting, and no more parts than a lock has.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import yaml

MAX_STEPS = 5_000_000

Children = Mapping[str, Sequence[str]]

MAX_EVENTS = 1_000_000  # of a stranger's file: 20,000 tasks' lock; read in ten seconds
_MAX_DEPTH = 50  # libyaml's loader recurses in C
_PART = 256  # characters of a text that count as a part
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_INT = re.compile(
    r"[-+]?0b[01_]+\Z|[-+]?0[0-7_]+\Z|[-+]?(?:0|[1-9][0-9_]*)\Z|[-+]?0x[0-9a-fA-F_]+\Z"
)
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?\Z|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?\Z"
    r"|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"
)


class _Loader(_BASE):  # type: ignore[misc]
    """YAML 1.1's safe loader without dates and numbers to the base of 60."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A dict; ConstructorError where a key stands twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    what = f"the key {key.value[:80]!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag not in _TEXT]
    for first, known in _BASE.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_yaml(data: bytes | str) -> Any:
    """Return the value in a user's YAML text, which may have aliases; ValueError says why it is
    not YAML, or over the limits."""
    _check(data, aliases=True)
    return _built(data)


def load_foreign_yaml(data: bytes) -> Any:
    """Return the value in a stranger's YAML text, which is checked before anything is built of it.
    ValueError says why it is refused."""
    _check(data, aliases=False)
    return _built(data)


def _built(data: bytes | str) -> Any:
    try:
        return yaml.load(data, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_line(error)) from None
    except (AttributeError, LookupError, OverflowError, TypeError):  # `!!int ""`
        raise ValueError("a value in it does not fit its tag") from None


def _check(data: bytes | str, *, aliases: bool) -> None:
    """Count the parts of a YAML text, an alias as all that it names, and how deep they are nested;
    ValueError over the limits, which keep the loader from recursing without end."""
    total, named = 0, dict[str, int]()
    above: list[tuple[str | None, int]] = []  # collections that are open: anchor, parts before
    try:
        for event in yaml.parse(data, Loader=_BASE):
            total += 1
            if isinstance(event, yaml.AliasEvent):
                if not aliases:
                    raise ValueError("it uses YAML aliases")
                name = str(event.anchor)
                if name not in named:
                    raise ValueError(f"the alias {name[:80]!r} names nothing before it")
                total += named[name]
            elif isinstance(event, yaml.ScalarEvent):
                total += len(event.value) // _PART
                named |= {event.anchor: 1 + len(event.value) // _PART} if event.anchor else {}
            elif isinstance(event, yaml.CollectionStartEvent):
                above.append((event.anchor, total))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = above.pop()
                named |= {anchor: total - before} if anchor else {}
            if len(above) > _MAX_DEPTH:
                raise ValueError("it is nested too deep")
            if total > MAX_EVENTS:
                raise ValueError(f"it is over the limit of {MAX_EVENTS:,} parts")
    except yaml.YAMLError as error:
        raise ValueError(_line(error)) from None


def _line(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the text around it."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).split("\n")[0]
    return f"{problem}, line {mark.line + 1}" if mark else str(problem)


@dataclass(slots=True)
class Groups:
    """Groups of tasks: the members of each by its name, and all leaf tasks. A stranger's groups may
    name each other twice at every level, so the steps of all walks together are limited."""

    children: Children
    leaves: Collection[str]
    _steps: int = field(default=0)

    def below(self, name: str, *, every_way: bool = False) -> list[str]:
        """Return the leaf tasks of a group, or a leaf task itself, each once and in order; unknown
        names and groups inside themselves are passed over. ValueError over the limit of steps.
        With `every_way` a task stands there once for each way to it, as lm-eval counts it."""
        found: list[str] = []
        pending, seen = [name], set()
        while pending:
            each = pending.pop()
            if each in seen and not every_way:
                continue
            seen.add(each)
            if each in self.leaves:
                found.append(each)
                continue
            members = self.children.get(each, ())
            self._steps += len(members)
            if self._steps > MAX_STEPS:
                raise ValueError(f"groups are over the limit of {MAX_STEPS:,} members in all")
            pending += reversed(members)
        return found

    def problem(self) -> str:
        """Return what is wrong with the groups (an unknown member, a circle), or an empty text."""
        for name in sorted(self.children):
            for member in self.children[name]:
                if member not in self.leaves and member not in self.children:
                    return f"{member} is no task or group of this record"
        try:
            TopologicalSorter({n: set(self.children[n]) for n in self.children}).prepare()
        except CycleError as error:
            return f"{error.args[1][0]} is a group inside itself"
        return ""

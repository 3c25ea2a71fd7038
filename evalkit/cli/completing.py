"""What a shell offers for options whose values have names: suites and profiles. A suite may be a
file as well.
"""

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem


class Names(click.ParamType[str]):
    """A text for which some names are offered, and files where `files`."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], *, files: bool = False) -> None:
        self._names, self._files = names, files

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that go on as what was typed."""
        found = [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")] if self._files else found


def _suites() -> list[str]:
    from evalkit.inputs import suite

    files = suite.FOLDER.glob("*.lock.yaml")
    return sorted(path.name.removesuffix(".lock.yaml") for path in files)


SUITE = Names(_suites, files=True)
PROFILE = Names(lambda: ("native", "precise"))

"""What the commands share: printing results, options that several have, keys, and the names that a
shell completes.

A result goes to stdout as text, or with --json as one line for programs.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from evalkit.base.errors import printable

if TYPE_CHECKING:
    from evalkit.record.signing.keys import Private

_ODD = re.compile(r"[^ -~]")


class Names(click.ParamType[str]):
    """A text for which a shell completes names, and files where `files`."""

    name = "text"

    def __init__(self, names: Callable[[], Iterable[str]], *, files: bool = False) -> None:
        self._names, self._files = names, files

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin with what was typed."""
        items = [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="file")] if self._files else items


def _suites() -> list[str]:
    from evalkit.inputs import suite

    files = suite.FOLDER.glob("*.lock.yaml")
    return sorted(path.name.removesuffix(".lock.yaml") for path in files)


def _share(_: click.Context, __: click.Parameter, group: str | None) -> None:
    from evalkit.base import private

    if group:
        private.share(group)


SUITE = Names(_suites, files=True)
PROFILE = Names(lambda: ("native", "precise"))
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, readable=False)  # evalkit itself says when it can't be read
out_option = click.option("--out", type=PATH, default=Path("results"), show_default=True,
                          help="Folder for the results.")  # fmt: skip
models_option = click.option(
    "--model", "models", multiple=True, help="A Hub id or a folder; may be given more than once."
)
suite_option = click.option(
    "--suite", type=SUITE, default="core", show_default=True, help="A suite's name or file."
)
group_option = click.option("--group", metavar="NAME", callback=_share, expose_value=False,
                            is_eager=True, help="A Unix group that may read it.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
timestamp_option = click.option(
    "--timestamp", metavar="URL", help="Timestamp the signature at this authority (RFC 3161)."
)


def tell(as_json: bool, text: object, /, **fields: object) -> None:
    """Print a result as text, or as one JSON object of `fields`."""
    from evalkit.base import canon

    say(canon.dumps(fields) if as_json else str(text), as_json=as_json)


def say(text: str, *, err: bool = False, as_json: bool = False) -> None:
    """Print a text. Characters that would control a terminal are escaped, except line ends; in JSON
    they are escaped as JSON escapes them."""
    if as_json:
        click.echo(_ODD.sub(_escaped, text), err=err)
    else:
        click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def _escaped(match: re.Match[str]) -> str:
    char = match[0]
    return char if char.isprintable() else json.dumps(char)[1:-1]


def private_key(path: Path) -> "Private":
    """Return a private key, after asking for its passphrase if it has one."""
    from evalkit.record.signing import keys

    return keys.private(path, lambda: click.prompt("Passphrase", hide_input=True, err=True))


def stamp(folder: Path, key: "Private | None", authority: str | None) -> None:
    """Timestamp what a key has signed in a folder, if an authority is given."""
    if authority and key is not None and folder.is_dir():
        from evalkit.record.signing import sealing

        sealing.stamp(folder, key.public, authority)

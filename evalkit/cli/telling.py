"""What a command tells on stdout: its result as text, or with --json as one line for programs."""

import json
import re
from typing import Any

import click

from evalkit.base.errors import printable

_ODD = re.compile(r"[^ -~]")


def _share(_: click.Context, __: click.Parameter, group: str | None) -> None:
    from evalkit.base import canon

    if group:
        canon.share(group)


group_option = click.option("--group", metavar="NAME", callback=_share, expose_value=False,
                            is_eager=True, help="A Unix group that may read it.")  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def tell(as_json: bool, text: object, /, **fields: Any) -> None:
    """Print a result as text, or as one JSON object of `fields`."""
    from evalkit.base import canon

    say(canon.dumps(fields) if as_json else str(text), as_json=as_json)


def say(text: str, *, err: bool = False, as_json: bool = False) -> None:
    """Print a text; what would do anything to a terminal but end a line is escaped, whoever it
    comes from. In JSON as JSON escapes it."""
    if as_json:
        click.echo(_ODD.sub(_unit, text), err=err)
    else:
        click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def _unit(found: re.Match[str]) -> str:
    c = found[0]
    return c if c.isprintable() else json.dumps(c)[1:-1]

"""What a command tells on stdout: its result as text, or with --json as one line for programs."""

from typing import Any

import click


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

    click.echo(canon.dumps(fields) if as_json else str(text))

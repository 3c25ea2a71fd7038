"""What a command tells on stdout: its result as text, or with --json as one line for programs."""

from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def tell(as_json: bool, text: object, /, **fields: Any) -> None:
    """Print a result as text, or as one JSON object of `fields`."""
    from evalkit.base import canon

    click.echo(canon.dumps(fields) if as_json else str(text))

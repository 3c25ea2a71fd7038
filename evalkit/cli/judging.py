"""The commands that look at what runs left, and judge it."""

import sys
from pathlib import Path

import click


@click.command("verify")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON on stdout.")
def verify_command(folder: Path, as_json: bool) -> None:
    """Check a record against itself: no GPU, no network, no dataset, no model.

    \b
    evalkit verify results/demo/demo-0123456789ab
    """
    from evalkit.verify import verify

    report = verify(folder)
    click.echo(report.to_json() if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_code)

"""The commands that show results to people and other tools."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.common import PATH, json_option, out_option, say, tell

if TYPE_CHECKING:
    from evalkit.show.report import Options

FORMATS = ("csv", "markdown", "latex", "every-eval-ever", "model-index", "eval-results", "parquet",
           "lm-eval", "mlflow", "wandb")  # fmt: skip
unverified_option = click.option(
    "--unverified", is_flag=True, help="Also a record that contradicts itself; it is marked."
)
pack_option = click.option("--pack", metavar="URL", default="", help="Where the public pack is.")
runs_argument = click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=PATH)


@click.command("report")
@click.argument("folders", metavar="RUN...", nargs=-1, type=PATH)
@click.option("--site", type=PATH, metavar="RESULTS",
              help="Pages for all records in a folder, with an index.")  # fmt: skip
@click.option("--out", type=PATH, help="The file (default: in the run's folder).")
@click.option("--samples", type=click.Choice(["some", "all"]), default="some", show_default=True,
              help="Which texts to include: at most 5 MB, or all.")  # fmt: skip
@click.option("--allowed-signers", "allowed", metavar="FILE", type=PATH,
              help="Signers that count: names and keys, in ssh-keygen's format.")  # fmt: skip
@click.option("--policy", metavar="FILE", type=PATH,
              help="Further conditions that a record must meet.")  # fmt: skip
@click.option("--badge", metavar="FILE", type=PATH,
              help="Also write the verdict as a small SVG.")  # fmt: skip
@click.option("--watch", "watched", is_flag=True, help="Repeat while RUN runs.")
@click.option("--address", metavar="URL", default="",
              help="Where the page or site will be: links to it show a picture.")  # fmt: skip
@pack_option
@json_option
def report_command(
    folders: tuple[Path, ...], site: Path | None, out: Path | None, watched: bool, as_json: bool,
    badge: Path | None, **how: Any,
) -> None:  # fmt: skip
    """Write one HTML file about a run, or about several compared.

    \b
    evalkit report results/demo/demo-0123456789ab
    evalkit report RUN1 RUN2 --out compared.html
    evalkit report --site results/ --out public/
    """
    from evalkit.base import bounded
    from evalkit.record.packs import archive
    from evalkit.show import report

    if len(folders) == 1 and out is None and archive.is_pack(folders[0]):
        out = folders[0].with_name(folders[0].name.removesuffix(archive.SUFFIX) + ".html")
    options = report.options(**how)
    if watched:
        return _watch(folders, out, options)
    with archive.opened(folders) as runs:
        work = partial(report.make, runs, site, out, options, badge)
        path = bounded.run(work, [*runs, *([site] if site else [])])
    tell(as_json, path, file=str(path), bytes=path.stat().st_size)


def _watch(folders: tuple[Path, ...], out: Path | None, options: "Options") -> None:
    import time

    from evalkit.show import report

    if len(folders) != 1:
        raise EvalkitError("--watch is for one run")
    for path in report.watch(folders[0], out, options, time.sleep):
        say(str(path))


@click.command("export")
@runs_argument
@click.option("--to", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option("--out", type=PATH, help="The file (for lm-eval a folder).")
@unverified_option
@pack_option
@json_option
def export_command(
    folders: tuple[Path, ...], to: str, out: Path | None, as_json: bool, **how: Any
) -> None:
    """Write scores for other tools: CSV, LaTeX, model cards.

    \b
    evalkit export results/demo/demo-0123456789ab --to csv
    evalkit export RUN1 RUN2 --to latex --out table.tex
    """
    from evalkit.base import bounded
    from evalkit.record.packs import archive
    from evalkit.show import export

    with archive.opened(folders) as runs:
        written = bounded.run(partial(export.write, runs, to, out, **how), runs)
    tell(as_json, written, format=to, **{"path" if out else "text": written})


@click.command("check-table")
@click.argument("paper", metavar="PAPER", type=PATH)
@click.argument("folders", metavar="[RUN]...", nargs=-1, type=PATH)
@click.option("--exempt", multiple=True, metavar="COLUMN", help="A column to leave out, by head.")
@json_option
def check_table_command(
    paper: Path, folders: tuple[Path, ...], exempt: tuple[str, ...], as_json: bool
) -> None:
    """Check the tables of a paper against records.

    \b
    evalkit check-table paper.tex results/demo/demo-0123456789ab
    evalkit check-table README.md

    PAPER is a LaTeX or Markdown file. Without RUN, evalkit checks whether each score is possible
    with the task's number of documents.
    """
    from evalkit.base import bounded
    from evalkit.record.packs import archive
    from evalkit.show import table_check

    with archive.opened(folders) as runs:
        work = partial(table_check.check, paper, runs, exempt)
        outcome = bounded.run(work, [paper, *runs])
    tell(as_json, "\n".join(outcome.lines()), **outcome.to_json())
    sys.exit(outcome.exit_code)


@click.command("import")
@click.argument("source", metavar="DIR", type=PATH)
@out_option
@json_option
def import_command(source: Path, out: Path, as_json: bool) -> None:
    """Import results that lm-eval wrote.

    \b
    evalkit import lm_eval_results/my-model
    """
    from evalkit.base import bounded
    from evalkit.record import imported

    folder = bounded.run(lambda: imported.bring_in(source, out), [source])
    tell(as_json, folder, folder=str(folder))

"""The commands for where runs are: what a host has, what is staged for it, what it runs in."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.telling import json_option, tell

IN = "docker, podman, apptainer or none (default: the first that works and has the image)."


@click.command("stage")
@click.option("--model", "models", multiple=True, help="A Hub id or a folder; may be repeated.")
@click.option("--revision", help="A Hub model's branch, tag or commit.")
@click.option("--suite", default="core", show_default=True, help="A name or a file.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The stage's folder.")
@click.option("--squashfs", type=click.Path(path_type=Path), metavar="FILE",
              help="Make one read-only file of it as well.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="Fetch weights that can run code.")
@click.option("--trust-remote-code", is_flag=True, help="Fetch the model's own code.")
@click.option("--check", is_flag=True, help="Only hold what is staged against its manifest.")
@click.option("--full", is_flag=True, help="With --check: read every file again.")
@json_option
def stage_command(
    squashfs: Path | None, check: bool, full: bool, as_json: bool, **given: Any
) -> None:
    """Fetch once what runs without network need: models and datasets at pinned revisions.

    \b
    evalkit stage --model meta-llama/Llama-3.1-8B --suite core --to staged
    evalkit stage --to staged --check
    """
    if check:
        return _check(given["to"], full, as_json)
    if not given["models"]:
        raise EvalkitError("no model given", fix="evalkit stage --model MODEL --to FOLDER")
    folder = _fetch(squashfs, given)
    tell(as_json, folder, folder=str(folder))


def _check(folder: Path, full: bool, as_json: bool) -> None:
    from evalkit.host import stage_manifest

    found = stage_manifest.check(folder, full=full)
    read = "all of it read" if full else f"{found.read:,} read"
    click.echo(f"stage ok: {found.files:,} files, {found.size:,} bytes, {read}", err=True)
    if as_json:
        tell(as_json, "", files=found.files, bytes=found.size, read=found.read)


def _fetch(squashfs: Path | None, given: dict[str, Any]) -> Path:
    from evalkit.host import stage_manifest

    for name, value in stage_manifest.fetching(given["to"]).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    from evalkit.base.events import Events
    from evalkit.host import stage

    events = Events()
    manifest = stage.stage(stage.Wanted(**given), events)
    if squashfs:
        stage.pack(given["to"], squashfs, events)
    return manifest.parent


@click.command("launch", context_settings={"allow_interspersed_args": False})
@click.option("--in", "wanted", default="", metavar="PLACE", help=IN)
@click.option("--image", default="", help="An image's name, or a SIF's path.")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def launch_command(wanted: str, image: str, arguments: tuple[str, ...]) -> None:
    """Run a command of evalkit's in its image.

    \b
    evalkit launch --in docker eval --model demo --suite demo
    """
    from evalkit.host.launch import runtimes, start

    place = runtimes.choose(wanted, image)
    click.echo(f"evalkit: runs {place.words}", err=True)
    sys.exit(start.start(place, arguments))


@click.command("doctor")
@click.option("--model", help="A model whose size is compared with this host's memory.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"),
              show_default=True, help="Where runs are kept.")  # fmt: skip
@json_option
def doctor_command(model: str | None, out: Path, as_json: bool) -> None:
    """Say what this host has and lacks for a run, and what to do about it.

    \b
    evalkit doctor --model meta-llama/Llama-3.1-8B
    """
    from evalkit.host import doctor

    findings = doctor.examine(doctor.Host(), out, model)
    told = [{"name": f.name, "status": f.status, "found": f.found, "fix": f.fix} for f in findings]
    tell(as_json, "\n".join(map(str, findings)), findings=told)
    sys.exit(any(finding.status is doctor.Status.FAIL for finding in findings))


def plan_options(command: Any) -> Any:
    """The options that are `evalkit plan`'s, to be passed on to it."""
    for option in reversed(
        [
            click.option("--revision", help="A Hub model's branch, tag or commit."),
            click.option("--limit", help="Documents a task: a partial, marked run."),
            click.option("--dtype", help="float32, bfloat16 or float16."),
            click.option("--profile", help="native or precise."),
            click.option("--level", help="A, B or C (default: probed)."),
            click.option("--seed", help="Sets every seed."),
            click.option("--threads", help="Threads within an operation."),
        ]
    ):
        command = option(command)
    return command


def slurm_options(command: Any) -> Any:
    """The options that are sbatch's; the site file has them as well."""
    for name in ("partition", "account", "qos", "constraint", "gres", "time", "mem", "cpus"):
        command = click.option(f"--{name}", help="As sbatch's (or the site file's).")(command)
    return command


@click.command("submit")
@click.option("--model", "models", multiple=True, help="A Hub id or a folder; may be repeated.")
@click.option("--suite", default="core", show_default=True, help="A name or a file.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"),
              show_default=True, help="Where runs are kept.")  # fmt: skip
@click.option("--stage", type=click.Path(path_type=Path), help="What `evalkit stage` made.")
@click.option("--shards", type=click.IntRange(min=1), help="A run's parts (default: by its plan).")
@click.option("--max-running", type=click.IntRange(min=1), help="Of them, at once.")
@click.option("--sif", type=click.Path(path_type=Path, exists=True), help="Run in this image.")
@click.option("--in", "inside", type=click.Choice(["none"]), help="none: in this environment.")
@click.option("--site", type=click.Path(path_type=Path), help="A cluster's settings, a TOML file.")
@click.option("--gpus-per-shard", type=click.IntRange(min=1), help="One model over so many.")
@click.option("--grace", "grace_s", type=click.IntRange(min=1), default=120, show_default=True,
              help="Seconds that a stopped shard has to end its batch.")  # fmt: skip
@click.option("--tokens-per-second", type=float, help="Of a shard, where none is measured yet.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes of a shard.")
@click.option("--dry-run", is_flag=True, help="Plan, write and show the scripts; send nothing.")
@slurm_options
@plan_options
@json_option
def submit_command(as_json: bool, **given: Any) -> None:
    """Run on a Slurm cluster: a job array of shards, and a job that writes the records.

    \b
    evalkit submit --model meta-llama/Llama-3.1-8B --suite core --stage staged --sif evalkit.sif
    """
    from evalkit.host.cluster import submit

    sent = submit.submit(_wanted(given), lambda line: click.echo(line, err=True))
    if given["dry_run"] and not as_json:
        click.echo((sent.folder / "array.sbatch").read_text())
        click.echo((sent.folder / "finish.sbatch").read_text())
    tell(as_json, sent.folder, folder=str(sent.folder))


def _wanted(given: dict[str, Any]) -> Any:
    """The library's words for the command line's."""
    from evalkit.host.cluster import site, submit

    if not given["models"]:
        raise EvalkitError("no model given", fix="evalkit submit --model MODEL --suite SUITE")
    if (given["sif"] is None) == (given.pop("inside") is None):
        raise EvalkitError("where is evalkit to run", fix="give --sif IMAGE, or --in none")
    words = tuple((name, given.pop(name)) for name in site.SBATCH)
    plan: list[str] = []
    for name in ("revision", "limit", "dtype", "profile", "level", "seed", "threads"):
        value = given.pop(name)
        plan += [f"--{name}", value] if value is not None else []
    return submit.Wanted(**given, words=words, plan=tuple(plan))

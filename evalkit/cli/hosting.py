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
@click.option(
    "--model", "models", multiple=True, help="A Hub id or a folder; may be given more than once."
)
@click.option("--revision", help="A Hub model's branch, tag or commit.")
@click.option("--suite", default="core", show_default=True, help="A suite's name or file.")
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The folder to fill.")
@click.option("--squashfs", type=click.Path(path_type=Path), metavar="FILE",
              help="Also make one read-only SquashFS file.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="Allow pickled weights, which can run code.")
@click.option("--trust-remote-code", is_flag=True, help="Allow the model's own Python code.")
@click.option("--check", is_flag=True, help="Only check the staged files against the manifest.")
@click.option("--full", is_flag=True, help="With --check: read all files again.")
@json_option
def stage_command(
    squashfs: Path | None, check: bool, full: bool, as_json: bool, **given: Any
) -> None:
    """Fetch models and datasets for hosts without a network.

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
    """Run an evalkit command in its container image.

    \b
    evalkit launch --in docker eval --model demo --suite demo
    """
    from evalkit.host.launch import runtimes, start

    place = runtimes.choose(wanted, image)
    click.echo(f"evalkit: runs {place.words}", err=True)
    sys.exit(start.start(place, arguments))


@click.command("doctor")
@click.option("--model", help="A model to compare with this host's memory.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"),
              show_default=True, help="Folder for the results.")  # fmt: skip
@json_option
def doctor_command(model: str | None, out: Path, as_json: bool) -> None:
    """Show what this host has, what it lacks, and what to do.

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
            click.option("--limit", help="Only the first N documents of each task."),
            click.option("--dtype", help="float32, bfloat16 or float16."),
            click.option("--profile", help="native or precise."),
            click.option("--level", help="A, B or C (default: probed)."),
            click.option("--seed", help="Set all seeds."),
            click.option("--threads", help="Threads within an operation."),
            click.option("--memory", help="GB of each GPU: 16, 24, 40, 80 or 141."),
        ]
    ):
        command = option(command)
    return command


def slurm_options(command: Any) -> Any:
    """The options that are sbatch's; the site file has them as well."""
    for name in ("partition", "account", "qos", "constraint", "gres", "time", "mem", "cpus"):
        command = click.option(f"--{name}", help=f"sbatch's --{name} (default: the site file's).")(
            command
        )
    return command


@click.command("submit")
@click.option(
    "--model", "models", multiple=True, help="A Hub id or a folder; may be given more than once."
)
@click.option("--suite", default="core", show_default=True, help="A suite's name or file.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results"),
              show_default=True, help="Folder for the results.")  # fmt: skip
@click.option(
    "--stage", type=click.Path(path_type=Path), help="The folder that `evalkit stage` filled."
)
@click.option(
    "--shards", type=click.IntRange(min=1), help="Number of shards (default: from the plan)."
)
@click.option("--max-running", type=click.IntRange(min=1), help="Shards that run at the same time.")
@click.option(
    "--sif", type=click.Path(path_type=Path, exists=True), help="An Apptainer image to run in."
)
@click.option(
    "--in", "inside", type=click.Choice(["none"]), help="none: run in this Python environment."
)
@click.option(
    "--site", type=click.Path(path_type=Path), help="A TOML file with the cluster's settings."
)
@click.option(
    "--gpus-per-shard",
    type=click.IntRange(min=1),
    help="GPUs that one copy of the model is spread over.",
)
@click.option("--grace", "grace_s", type=click.IntRange(min=1), default=120, show_default=True,
              help="Seconds to finish the current batch after a stop signal.")  # fmt: skip
@click.option("--tokens-per-second", type=float, help="A shard's speed, if none was measured yet.")
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes of a shard.")
@click.option("--dry-run", is_flag=True, help="Plan and show the scripts; submit nothing.")
@slurm_options
@plan_options
@json_option
def submit_command(as_json: bool, **given: Any) -> None:
    """Run on a Slurm cluster, as a job array of shards.

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
    for name in ("revision", "limit", "dtype", "profile", "level", "seed", "threads", "memory"):
        value = given.pop(name)
        plan += [f"--{name}", value] if value is not None else []
    return submit.Wanted(**given, words=words, plan=tuple(plan))

"""The commands for hosts: examine one, fetch files for it, run in an image, run programs."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from evalkit.base.errors import EvalkitError
from evalkit.cli.common import (
    PATH,
    group_option,
    json_option,
    models_option,
    out_option,
    say,
    suite_option,
    tell,
)
from evalkit.host.launch.command import PLACES

RUNTIMES = ", ".join(PLACES[:-1])
IN = f"{RUNTIMES} or none (default: the first that works and has the image)."


@click.command("stage")
@models_option
@click.option("--revision", help="A Hub model's branch, tag or commit.")
@suite_option
@click.option("--to", type=PATH, required=True, help="The folder to fill.")
@click.option("--squashfs", type=PATH, metavar="FILE",
              help="Also make one read-only SquashFS file.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="Allow pickled weights, which can run code.")
@click.option("--trust-remote-code", is_flag=True, help="Allow the model's own Python code.")
@click.option("--check", is_flag=True, help="Only check the staged files against the manifest.")
@click.option("--full", is_flag=True, help="With --check: read all files again.")
@group_option
@json_option
def stage_command(
    to: Path, squashfs: Path | None, check: bool, full: bool, as_json: bool, **given: Any
) -> None:
    """Fetch models and datasets for hosts without a network.

    \b
    evalkit stage --model meta-llama/Llama-3.1-8B --suite core --to staged
    evalkit stage --to staged --check
    """
    if check:
        return _check(to, full, as_json)
    if not given["models"]:
        raise EvalkitError("no model given", fix="evalkit stage --model MODEL --to FOLDER")
    if find_spec("datasets") is None:
        _stage_in_image()
    folder = _fetch(to, squashfs, given)
    tell(as_json, folder, folder=str(folder))


def _check(folder: Path, full: bool, as_json: bool) -> None:
    from evalkit.host import stage_manifest

    checked = stage_manifest.check(folder, full=full)
    read = "all of it read" if full else f"{checked.read:,} read"
    say(f"stage ok: {checked.files:,} files, {checked.size:,} bytes, {read}", err=True)
    if as_json:
        tell(as_json, "", files=checked.files, bytes=checked.size, read=checked.read)


def _stage_in_image() -> None:
    """Run this command in the image, where there is one, and end with it: the light install can't
    load datasets."""
    from evalkit.host.launch import runtimes, start

    place = runtimes.choose()
    if place.image is not None:
        say(f"evalkit: runs {place.words}", err=True)
        sys.exit(start.start(place, sys.argv[1:]))


def _fetch(to: Path, squashfs: Path | None, given: Mapping[str, Any]) -> Path:
    from evalkit.host import stage_manifest

    for name, value in stage_manifest.fetching(to).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    from evalkit.base.events import Events
    from evalkit.host import stage

    events = Events()
    manifest = stage.stage(stage.Wanted(to=to, **given), events)
    if squashfs:
        stage.pack(to, squashfs, events)
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
    say(f"evalkit: runs {place.words}", err=True)
    sys.exit(start.start(place, arguments))


@click.command("doctor")
@click.option("--model", help="A model to compare with this host's memory.")
@out_option
@json_option
def doctor_command(model: str | None, out: Path, as_json: bool) -> None:
    """Show what this host has, what it lacks, and what to do.

    \b
    evalkit doctor --model meta-llama/Llama-3.1-8B
    """
    from evalkit.host import doctor

    findings = doctor.examine(doctor.Host(), out, model)
    tell(as_json, "\n".join(map(str, findings)), findings=list(map(asdict, findings)))
    sys.exit(any(finding.status is doctor.Status.FAIL for finding in findings))


@click.command("grade")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--in", "wanted", default="", metavar="PLACE", help=f"{RUNTIMES}.")
@click.option("--image", default="", help="An image's name, or a SIF's path.")
@click.option("--seconds", type=click.IntRange(1, 600), default=10, show_default=True,
              help="Time limit of a program.")  # fmt: skip
@click.option("--suite", help="The suite's file, if it is not named so in the run.")
@click.option("--model", help="The model's folder, if it is not named so in the run.")
@click.option("--offline", is_flag=True, help="Use no network.")
@json_option
def grade_command(folder: Path, seconds: int, as_json: bool, **given: Any) -> None:
    """Run the programs that a model wrote, in the image.

    \b
    evalkit grade results/demo/code-0123456789ab --in docker

    Each program runs alone, without network, capabilities or writable files; then the record is
    written. For a graded run the programs run again, and the new verdicts must be the recorded
    ones.
    """
    from evalkit.base.events import Events
    from evalkit.host import grading
    from evalkit.host.sandbox import Limits

    events = Events()
    folder = grading.grade(folder, events, sys.argv, limits=Limits(seconds), **given)
    tell(as_json, folder, folder=str(folder))

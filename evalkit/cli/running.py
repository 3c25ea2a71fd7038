"""The commands that make runs: eval and its parts, a run's progress, a suite's lock."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evalkit.base import stopping
from evalkit.base.errors import EvalkitError
from evalkit.cli.common import (
    PATH,
    PROFILE,
    group_option,
    json_option,
    out_option,
    say,
    suite_option,
    tell,
    timestamp_option,
)
from evalkit.cli.sharing import sealer
from evalkit.inputs import hub

if TYPE_CHECKING:
    from evalkit.run.preparing.prepare import Options

DEVICES = "cpu, cuda (a worker on each GPU), cuda:N, or auto (one model over all GPUs)."
# GB; as `plan.memory.CLASSES`, without the imports of that module
MEMORY = ("8", "12", "16", "24", "32", "40", "48", "80", "96", "141", "180")
MODEL_EXAMPLE = "make eval MODEL=meta-llama/Llama-3.1-8B   (or: evalkit eval --model FOLDER)"


def run_options(command: Any) -> Any:
    """Add the options that decide what a run is."""
    for option in reversed(
        [
            click.option("--model", help="A Hub id, a folder, a GGUF file, smollm2 or demo."),
            click.option("--revision", help="A Hub model's branch, tag or commit."),
            suite_option,
            click.option("--limit", type=int, help="Only the first N documents of each task."),
            out_option,
            click.option("--offline", is_flag=True, help="Use no network."),
            click.option("--dtype", help="float32, bfloat16 or float16 (default: the weights')."),
            click.option("--profile", type=PROFILE,
                         help="native (default) or precise: float32 products."),
            click.option("--level", help="What rows share: tree, prefix, none (default: probed)."),
            click.option("--adapter", type=PATH, help="A LoRA adapter."),
            click.option("--engine", default="evalkit", show_default=True,
                         help="evalkit, or lm-eval:NAME for a model class of lm-eval's."),
            click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE",
                         help="An argument of that class. It is published: no secrets."),
            click.option("--device", help=DEVICES),
            click.option("--memory", type=click.Choice(MEMORY),
                         help="Plan for GPUs of so many GB (default: those here, or the CPU)."),
            click.option("--threads", type=int, default=1, show_default=True,
                         help="Threads within an operation; part of the run's identity."),
            click.option("--seed", type=int, help="Set all seeds, as lm-eval's --seed does."),
            click.option("--allow-pickle", is_flag=True,
                         help="Allow pickled weights, which can run code."),
            click.option("--trust-remote-code", is_flag=True, help="Allow the model's own code."),
            click.option("--fresh", is_flag=True, help="Start anew beside an unfinished run."),
            click.option("--again", is_flag=True, help="Run a finished run once more."),
        ]
    ):  # fmt: skip
        command = option(command)
    return command


def worker_options(command: Any) -> Any:
    """Add the options that decide what executes a run; they change no answer."""
    for option in (
        click.option("--grace", "grace_s", type=float, default=stopping.GRACE_S, show_default=True,
                     help="Seconds to finish current batches after a stop signal."),
        click.option("--workers", type=click.IntRange(min=0),
                     help="Worker processes (default: one per GPU or core; 0: none)."),
    ):  # fmt: skip
        command = option(command)
    return command


def options_from(
    *, model: str | None, offline: bool, memory: str | None, **given: Any
) -> "Options":
    """Return the library's Options for the options of the command line."""
    from evalkit.run.preparing.prepare import Options

    if not model:
        raise EvalkitError(
            "no model given",
            fix="usage: make eval MODEL=<hub id, folder, GGUF file or smollm2>, e.g."
            f" {MODEL_EXAMPLE}",
        )
    if offline:
        hub.go_offline()
    return Options(model=model, offline=offline, memory=int(memory) if memory else None, **given)


def _seeds(_: Any, __: Any, value: str | None) -> tuple[int, ...]:
    """Parse a list of seeds; an empty one without a value."""
    words = [word.strip() for word in (value or "").split(",")] if value else []
    if not all(word.isdigit() for word in words) or len(set(words)) < len(words):
        raise EvalkitError(f"--seeds is '{value}', no list of seeds", fix="e.g. --seeds 1,2,3")
    return tuple(map(int, words))


@click.command("eval")
@run_options
@worker_options
@click.option("--seal", "key", metavar="KEY", type=PATH,
              help="Seal the plan with this key before the first answer.")  # fmt: skip
@timestamp_option
@group_option
@click.option(
    "--seeds",
    callback=_seeds,
    metavar="N,N,...",
    help="Run once with each seed, and show how far the scores lie apart.",
)
@json_option
def eval_command(
    workers: int | None, grace_s: float, key: Path | None, timestamp: str | None,
    seeds: tuple[int, ...], as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Evaluate a model on a suite and write a record.

    \b
    evalkit eval --model meta-llama/Llama-3.1-8B --suite core
    """
    options = options_from(**given)
    if seeds and options.seed is not None:
        raise EvalkitError("--seed and --seeds are both given", fix="give one of them")
    from evalkit.show import seeds as runs

    evaluated = runs.evaluate_all(
        options, seeds, sys.argv, workers=workers, grace_s=grace_s, seal=sealer(key, timestamp)
    )
    folders = list(map(str, evaluated.folders))
    more = {"folders": folders} if seeds else {}
    tell(as_json, "\n".join(folders), folder=folders[-1], exit_code=evaluated.code, **more)
    sys.exit(evaluated.code)


@click.command("plan")
@run_options
@group_option
@json_option
def plan_command(as_json: bool, **given: Any) -> None:
    """Plan a run, without loading the model's weights.

    \b
    evalkit plan --model meta-llama/Llama-3.1-8B --suite core
    """
    options = options_from(**given)
    from evalkit.base.events import Events
    from evalkit.run import evaluate as run
    from evalkit.show import progress

    events = Events()
    folder = run.plan_only(options, events)
    progress.show_plan(folder, events.console)
    tell(as_json, folder, folder=str(folder))


@click.command("execute")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--model", help="The model, if the run was not planned here.")
@click.option("--adapter", type=PATH, help="The adapter, if it has moved.")
@click.option("--device", help=DEVICES)
@click.option("--offline", is_flag=True, help="Use no network.")
@click.option("--shard", metavar="K/N", help="Part K of N (default: from the Slurm array).")
@worker_options
@json_option
def execute_command(folder: Path, shard: str | None, as_json: bool, **given: Any) -> None:
    """Compute the answers of a planned run.

    \b
    evalkit execute results/demo/demo-0123456789ab
    evalkit execute results/demo/demo-0123456789ab --shard 1/4

    It needs the run's folder and the model, but no dataset and no network.
    """
    from evalkit.base.events import Events
    from evalkit.plan import shards
    from evalkit.run import evaluate as run

    part = shards.parse(shard) if shard else shards.of_array(os.environ)
    run.execute_only(folder, Events(), shard=part, **given)
    tell(as_json, folder, folder=str(folder))


@click.command("worker", hidden=True)
@click.option("--template", type=int, metavar="LINK",
              help="Import, and fork workers as the parent says over this socket.")  # fmt: skip
def worker_command(template: int | None) -> None:
    """Answer batches that a parent process names on stdin."""
    if template is not None:
        from evalkit.run.processes import template as templates

        templates.serve(template)  # returns in each worker
    from evalkit.run.processes import serving

    serving.serve()


@click.command("finish")
@click.argument("folder", metavar="RUN", type=PATH)
@click.option("--suite", help="The suite's file, if the run was not planned here.")
@click.option("--model", help="The model, if the run was not planned here.")
@click.option("--offline", is_flag=True, help="Use no network.")
@click.option(
    "--prefer", metavar="SEGMENT", help="The segment whose answers count where two differ."
)
@json_option
def finish_command(folder: Path, as_json: bool, **given: Any) -> None:
    """Score a completely answered run and write its record.

    \b
    evalkit finish results/demo/demo-0123456789ab
    """
    from evalkit.base.events import Events
    from evalkit.run import evaluate as run
    from evalkit.show import summary

    events = Events()
    folder = run.finish_only(folder, events, sys.argv, **given)
    code = summary.show(folder, events.console)
    tell(as_json, folder, folder=str(folder), exit_code=code)
    sys.exit(code)


@click.command("status")
@click.argument("folders", metavar="RUN...", nargs=-1, required=True,
                type=click.Path(path_type=Path, readable=False))  # fmt: skip
@click.option("--watch", "watched", is_flag=True, help="Repeat while Slurm runs it.")
@click.option("--logs", is_flag=True, help="Add the last lines of each job's log.")
@json_option
def status_command(folders: tuple[Path, ...], watched: bool, logs: bool, as_json: bool) -> None:
    """Show the progress of runs or submissions.

    \b
    evalkit status results/demo/demo-0123456789ab
    evalkit status results/submissions/demo-0123456789ab --watch
    evalkit status results/submissions/*
    """
    import time

    from evalkit.host.cluster import watch
    from evalkit.record.reading.folder import foreign

    folder, *others = folders
    if watched and others:
        raise EvalkitError("--watch is for one run or submission", where=str(others[0]))
    if others:
        told = watch.several(folders, with_logs=logs)
        return tell(as_json, told.text.rstrip(), folders=told.fields)
    with foreign(folder, watch.ODD):
        if watched:
            return watch.follow(folder, say, time.sleep)
        text = watch.report(folder) + (watch.logs(folder) if logs else "")
        fields = watch.fields(folder)
    tell(as_json, text, lines=text.splitlines(), **fields)


@click.command("lock")
@click.argument("suite", metavar="SUITE")
@group_option
@click.option("--update", is_flag=True, help="Take the datasets' current revisions.")
@click.option("--offline", is_flag=True, help="Use no network.")
@json_option
def lock_command(suite: str, update: bool, offline: bool, as_json: bool) -> None:
    """Make or refresh the lock of a suite.

    \b
    evalkit lock my-suite.yaml

    It pins dataset revisions, rows, the rows that shots are drawn from, and licences.
    """
    if offline:
        hub.go_offline()
    from evalkit.harness import locking

    path = locking.write_lock(suite, update=update, offline=offline)
    tell(as_json, path, file=str(path))

"""The commands for clusters: send runs to Slurm, cancel them, write a Job for Kubernetes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from evalkit.host.cluster.checks import Wanted

# Options of `evalkit plan`, passed on to it.
PLAN = {
    "revision": "A Hub model's branch, tag or commit.",
    "limit": "Only the first N documents of each task.",
    "dtype": "float32, bfloat16 or float16.",
    "profile": "native or precise.",
    "level": "What rows share, as in `evalkit plan`.",
    "seed": "Set all seeds.",
    "threads": "Threads within an operation.",
    "memory": "GB of each GPU: 24, 40, 80, 141, ...",
    "engine": "evalkit, or lm-eval:NAME for a model class of lm-eval's.",
}
FLAGS = {
    "fresh": "Ignore an unfinished run with other inputs.",
    "allow_pickle": "Allow pickled weights, which can run code.",
    "trust_remote_code": "Allow the model's own Python code.",
}


def plan_options(command: Any) -> Any:
    """Add the options that are passed on to `evalkit plan`."""
    for name, text in reversed(FLAGS.items()):
        command = click.option(_option(name), is_flag=True, help=text)(command)
    command = click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE",
                           help="An argument of that model class.")(command)  # fmt: skip
    for name, text in reversed(PLAN.items()):
        command = click.option(_option(name), help=text)(command)
    return command


def site_options(command: Any) -> Any:
    """Add an option for each setting of a site, which a site file may have as well."""
    from evalkit.host.cluster.site import SETTINGS

    for name, text in reversed(SETTINGS.items()):
        command = click.option(_option(name), help=text)(command)
    return command


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@click.command("submit")
@models_option
@suite_option
@out_option
@click.option("--stage", type=PATH, help="The folder that `evalkit stage` filled.")
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
@click.option("--site", help="A file with the cluster's settings, or the name of a site in yours.")
@click.option(
    "--gpus-per-shard",
    type=click.IntRange(min=1),
    help="GPUs that one copy of the model is spread over.",
)
@click.option("--grace", "grace_s", type=click.IntRange(min=1), default=120, show_default=True,
              help="Seconds to finish the current batch after a stop signal.")  # fmt: skip
@click.option("--tokens-per-second", type=float, help="A shard's speed, if none was measured yet.")
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes of a shard.")
@click.option("--adapter", type=click.Path(path_type=Path, exists=True), help="A LoRA adapter.")
@click.option("--dry-run", is_flag=True, help="Plan and show the scripts; submit nothing.")
@plan_options
@site_options
@group_option
@json_option
def submit_command(as_json: bool, **given: Any) -> None:
    """Run on a Slurm cluster, as a job array of shards.

    \b
    evalkit submit --model meta-llama/Llama-3.1-8B --suite core --stage staged --sif evalkit.sif
    """
    from evalkit.host.cluster import submit

    sent = submit.submit(_wanted(**given), lambda line: say(line, err=True))
    if given["dry_run"] and not as_json:
        say((sent.folder / "array.sbatch").read_text())
        say((sent.folder / "finish.sbatch").read_text())
    tell(as_json, sent.folder, folder=str(sent.folder))


def _wanted(
    *, models: tuple[str, ...], sif: Path | None, inside: str | None, engine_args: tuple[str, ...],
    **given: Any,
) -> "Wanted":  # fmt: skip
    """Return the request that the options of the command line describe."""
    from evalkit.host.cluster.checks import Wanted
    from evalkit.host.cluster.site import SETTINGS

    if not models:
        raise EvalkitError("no model given", fix="evalkit submit --model MODEL --suite SUITE")
    if (sif is None) == (inside is None):
        raise EvalkitError("where is evalkit to run", fix="give --sif IMAGE, or --in none")
    words = tuple((name, given.pop(name)) for name in SETTINGS)
    plan: list[str] = []
    for name in PLAN:
        value = given.pop(name)
        plan += [_option(name), value] if value is not None else []
    for word in engine_args:
        plan += ["--engine-arg", word]
    plan += [_option(name) for name in FLAGS if given.pop(name)]
    return Wanted(models=models, sif=sif, words=words, plan=tuple(plan), **given)


@click.command("cancel")
@click.argument("folder", metavar="RUN", type=PATH)
@json_option
def cancel_command(folder: Path, as_json: bool) -> None:
    """Cancel the Slurm jobs of a submission.

    \b
    evalkit cancel results/submissions/demo-0123456789ab
    """
    from evalkit.host.cluster import watch

    jobs = watch.cancel(folder)
    tell(as_json, f"cancelled: {', '.join(jobs) or 'nothing was in the queue'}", jobs=jobs)


@click.command("manifest")
@click.argument("run", metavar="RUN", type=PATH)
@click.option("--image", required=True, help="The image, by its digest.")
@click.option("--claim", required=True, help="The claim of the volume with run and stage.")
@click.option("--mount", required=True, help="Where pods see the volume.")
@click.option("--stage", required=True, help="The stage's folder on it.")
@click.option("--shards", type=click.IntRange(min=1), required=True, help="Number of shards.")
@click.option("--max-running", "parallel", type=click.IntRange(min=1), default=8, show_default=True,
              help="Shards that run at the same time.")  # fmt: skip
@click.option("--gpus-per-shard", "gpus", type=click.IntRange(min=0), default=0,
              help="GPUs of each pod.")  # fmt: skip
@click.option("--grace", "grace_s", type=click.IntRange(min=1), default=120, show_default=True,
              help="Seconds to finish the current batch after a stop signal.")  # fmt: skip
def manifest_command(run: Path, stage: str, **given: Any) -> None:
    """Print a Kubernetes Job for the shards of a planned run.

    \b
    evalkit manifest RUN --image registry.example/evalkit@sha256:... --claim evals \\
        --mount /work --stage /work/staged --shards 16 | kubectl apply -f -
    """
    import json

    from evalkit.host import stage_manifest
    from evalkit.host.cluster import kubernetes
    from evalkit.run import folder

    folder.read(run)
    pods = kubernetes.Pods(home=str(stage_manifest.home(Path(stage))), **given)
    say(json.dumps(kubernetes.manifest(str(run.absolute()), pods), indent=2))

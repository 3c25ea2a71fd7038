"""Takes over the answers of a run for a suite whose tasks were mended, where the prompts are equal.

A task's files are in a suite's identity, so a mended task makes another run. The model's input is
the prompts only: where the plan of the mended suite has exactly the batches of the old run, the old
answers are valid. They are copied into the folder of a new run, and its record names the old run.
"""

import secrets
from pathlib import Path

from evalkit.base import canon
from evalkit.base.errors import EvalkitError
from evalkit.base.events import now
from evalkit.inputs.locked import Lock
from evalkit.inputs.suite import Suite
from evalkit.inputs.types import SuiteIdentity
from evalkit.plan.cache import Planned
from evalkit.plan.types import PlanBody
from evalkit.record import journal
from evalkit.record.types import RunBody
from evalkit.run import folder
from evalkit.run.folder import Run
from evalkit.run.preparing import named


def over(run: Run, suite: Suite, lock: Lock, identity: SuiteIdentity, planned: Planned) -> Run:
    """Write a new run of the mended suite with the answers of `run`, and return it. `identity` and
    `planned` are the new suite's; its plan is made as that of the run. Raises EvalkitError (2),
    with the first leaf task whose prompts differ."""
    old = canon.read_json(run.folder / "plan.json")
    _check_same(old, planned.body)
    body: RunBody = {
        **run.body,
        "ids": {**planned.body["ids"],
                "run": folder.run_id(planned.body["ids"]["plan"], run.body["inputs"])},
        "execution": secrets.token_hex(16),
        "created": now(),
        "suite": folder.described(suite, identity),
        "inputs": run.body["inputs"] | {"suite": identity},
        "carried": {"run": run.body["ids"]["run"], "batches": len(old["batches"])},
    }  # fmt: skip
    name = folder.name_of(suite, body["ids"]["run"])
    root = run.folder.parent
    making = canon.beside(root / name)
    for part in ("events", "telemetry", "journal"):
        canon.make_folder(making / part)
    for part in ("events", "telemetry"):
        for path in sorted((run.folder / part).glob("*.jsonl")):
            canon.write_atomic(making / part / path.name, path.read_bytes())
    _restamp(run, making / "journal", body["ids"]["run"])
    canon.write_atomic(making / "plan.tokens", (run.folder / "plan.tokens").read_bytes())
    canon.write_atomic(making / "plan.json", canon.dumps(planned.body) + "\n")
    lock.write(making / "lock.yaml")
    canon.write_json(making / "run.json", body)
    place = root / name
    if place.exists():
        raise EvalkitError("the mended suite has a run already", where=str(place))
    making.rename(place)
    named.remember(place, named.places(run.folder))
    return Run(place, body)


def _check_same(old: PlanBody, new: PlanBody) -> None:
    asked = [[(b["id"], b["task"]) for b in body["batches"]] for body in (old, new)]
    if asked[0] == asked[1] and old["empty_texts"] == new["empty_texts"]:
        return
    unlike = sorted({task for _, task in set(asked[0]) ^ set(asked[1])})
    named = f"of task '{unlike[0]}' " if unlike else ""
    raise EvalkitError(
        f"the prompts {named}are not those that were answered, so the answers can't be scored",
        fix="run the suite again: evalkit eval ... --fresh",
    )


def _restamp(run: Run, to: Path, new: str) -> None:
    old = run.body["ids"]["run"]
    for path in sorted((run.folder / "journal").glob("*.jsonl")):
        found = []
        for _, _, line in journal.lines(path):
            if line is not None and line["run"] == old:
                line["run"] = new
                found.append(canon.dumps(line | {"sha256": journal.checksum(line)}) + "\n")
        canon.write_atomic(to / path.name, "".join(found))

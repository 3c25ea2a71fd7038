"""`verify --deep`: checks that need the data, the tokenizer or the model.

Suite and model are the reader's own, the data is what the suite's lock pins: no name or path in the
record is followed. The plan is built again, and lm-eval scores the journal's answers again; both
must come out equal. A record that contradicts itself is not checked so.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.base import canon
from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.samples import Sample, value_of
from evalkit.inputs import suite as suites
from evalkit.inputs.files import sha256s
from evalkit.inputs.suite import Suite
from evalkit.record.reading.evidence.samples import NAME
from evalkit.record.reading.findings import Check, Findings, Status, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, reason
from evalkit.record.reading.identity import Read
from evalkit.record.salted import LINES, PublicLine
from evalkit.record.types import Record

if TYPE_CHECKING:
    from evalkit.harness.tasks import Loaded
    from evalkit.inputs.models.model import Model
    from evalkit.plan.batch import Policy

SECTIONS = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples",
            "higher_is_better")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deep:
    """What the reader has: a model's folder or name, the suite's file if it is not a shipped one;
    `offline`: whether the network may not be used."""

    model: str | None = None
    suite: str | None = None
    offline: bool = False


def checks(folder: Folder, read: Read, deep: Deep) -> list[Check]:
    """Return the checks; one that lacks its data or model is skipped with the reason."""
    made: list[Check] = []
    try:
        for check in _checks(folder, read, deep):
            made.append(check)
            if check.status is not Status.PASS and check.name == "deep suite":
                break
    except EvalkitError as error:
        missing = error.code == Exit.MISSING
        detail = ": ".join(map(shown, filter(None, (error.what, error.where, error.fix))))
        made.append(Check("deep", Status.SKIP if missing else Status.FAIL, detail))
    except BROKEN as error:  # a public pack's answers, whose form no check before this one looks at
        made.append(Check("deep", Status.FAIL, reason(error)))
    return made


def _checks(folder: Folder, read: Read, deep: Deep) -> Iterator[Check]:
    """Yield the checks of 1 the suite, 2 its data, 3 the model, 4 the plan, 5 the samples."""
    from evalkit.harness import tasks
    from evalkit.inputs.models import model as models

    record, run = read.record, folder.root
    assert record is not None, "only a consistent record is looked at more deeply"
    name = deep.suite or record["suite"]["name"]
    if deep.suite is None and name not in suites.shipped():
        yield Check("deep suite", Status.SKIP, f"{shown(name)} is no shipped suite: give --suite")
        return
    suite = _suite(name, record)
    yield _asked(suite, record)
    loaded = tasks.load_locked(suite, suites.lock_of(suite), offline=deep.offline)
    yield Check("deep data", Status.PASS, f"{len(loaded.leaves):,} leaf tasks' rows as locked")
    model = models.resolve(deep.model, offline=deep.offline) if deep.model else None
    if model is None:
        yield Check("deep plan", Status.SKIP, "no tokenizer at hand: give --model")
    else:
        yield _model(model, record)
        yield _plan(run, record, loaded, model)
    if suite.apply_chat_template and model is None:
        yield Check("deep scores", Status.SKIP, "no chat template at hand: give --model")
        return
    template = _template(model, suite)
    if folder.is_public:
        yield _texts(folder, record, loaded, template)
    else:
        yield _scores(run, record, loaded, template)


def _suite(name: str, record: Record) -> Suite:
    """Load the reader's suite with the record's limit, and with its seed if all seeds are equal."""
    asked = record["suite"]
    suite = suites.load(name, limit=asked["limit"])
    seed = suites.common_seed(asked["seeds"])
    if suite.seeds != asked["seeds"] and seed is not None:
        suite = suites.load(name, limit=asked["limit"], seed=seed)
    return replace(suite, chat=suite.chat.at(asked.get("clock")))


def _asked(suite: Suite, record: Record) -> Check:
    findings = Findings("deep suite")
    identity = canon.finite(suites.identity(suite, suites.lock_of(suite)))
    for key, value in identity.items():
        recorded = record["suite"].get(key)
        if recorded != value:
            findings.add(f"{key} is {shown(recorded)}, the suite says {shown(value)}")
    return findings.check("every request is what the suite's own files ask")


def _model(model: "Model", record: Record) -> Check:
    findings = Findings("deep model")
    recorded, found = sha256s(record["model"]["files"]), model.sha256()
    unlike = {n for n in found.keys() | recorded.keys() if found.get(n) != recorded.get(n)}
    if unlike:
        findings.add(f"{len(unlike):,} files are not the recorded ones: {few(unlike)}")
    return findings.check(f"{len(found):,} files, digests as recorded")


def _template(model: "Model | None", suite: Suite) -> Any:
    if model is None or not suite.apply_chat_template:
        return None
    from evalkit.inputs.models.tokenizer import Tokenizer

    return Tokenizer(model).chat_template_for(suite)


def _plan(run: Path, record: Record, loaded: "Loaded", model: "Model") -> Check:
    """Build the plan again, from the requests and the tokenizer, and compare its id."""
    from evalkit.harness.asking import requests
    from evalkit.inputs.models import architecture
    from evalkit.inputs.models.tokenizer import Tokenizer
    from evalkit.plan.requests import asking
    from evalkit.plan.store import Builder
    from evalkit.plan.tokenise import tokenise

    engine = record["engine"]
    policy = _policy(record, model)
    if policy.to_json() != engine["policy"]:
        return Check("deep plan", Status.SKIP, "planned by another batching policy than ours")
    tokenizer = Tokenizer(model)
    path = run / "plan.json"
    written = canon.read_json(path) if path.exists() else None  # a public pack has none
    if engine["name"] != "evalkit":  # whose own limit only its engine knows
        if written is None:
            return Check("deep plan", Status.SKIP, "the plan of another engine is not in the pack")
        tokenizer.max_length = written["max_length"]
    asked = asking.of(loaded.suite, model, tokenizer)
    rope_limit = architecture.rope_limit(model.config)
    made = Builder(policy, level=engine["level"], rope_limit=rope_limit)
    for name in sorted(loaded.leaves):
        made.add(tokenise(requests.of_leaf(loaded, name, asked), tokenizer))
    body = made.body(
        suite_id=record["ids"]["suite"],
        tokenizer=model.tokenizer_files(),
        max_length=tokenizer.max_length,
    )
    findings = Findings("deep plan")
    findings.add_unequal("the plan id", record["ids"]["plan"], body["ids"]["plan"])
    if findings.count and written:
        theirs, ours = ({b["id"] for b in plan["batches"]} for plan in (written, body))
        findings.add(f"{len(theirs - ours):,} of {len(theirs):,} batches are not ours")
    return findings.check(f"{len(body['batches']):,} batches, built again to the same ids")


def _policy(record: Record, model: "Model") -> "Policy":
    """Return the batching policy that this evalkit takes for the record's kind of GPU."""
    from evalkit.plan import memory
    from evalkit.plan.batch import Policy
    from evalkit.run.preparing.prepare import needs_of

    wanted = record["engine"]["policy"].get("memory", 0)
    if wanted not in memory.CLASSES:
        return Policy()
    parameters = record["model"]["parameters"]
    known = parameters if isinstance(parameters, int) else None
    found = memory.fit(needs_of(model, known, record["numerics"]), wanted)
    return found.policy if found else Policy()


def _scores(run: Path, record: Record, loaded: "Loaded", template: Any) -> Check:
    """Let lm-eval score the journal's answers again on the pinned documents, and compare."""
    from evalkit.harness.scoring import score
    from evalkit.plan.store import Plan
    from evalkit.record import journal
    from evalkit.record.journal import Answers

    plan = Plan(run)
    done = journal.of_record(run, record, plan.entries)
    scoring = score.Scoring(loaded, Answers(plan, done).of, template)
    findings, count = Findings("deep scores"), 0
    with gzip.open(run / NAME, "rt", encoding="utf-8") as recorded:
        for line, sample in zip_longest(recorded, scoring.samples()):
            count += 1
            made = None if sample is None else json.dumps(canon.finite(sample), ensure_ascii=False)
            if line is None or made != line.rstrip("\n"):
                which = sample or json.loads(line)
                name = f"{shown(which['task'])} document {which['doc_id']}"
                findings.add(f"{name}: lm-eval makes another sample of it")
    results = canon.finite(scoring.results())
    written = canon.read_json(run / "results.json")
    for section in SECTIONS:
        if results.get(section) != written.get(section):
            findings.add(f"lm-eval makes other {section} than results.json has")
    return findings.check(f"{count:,} samples and their results made again by lm-eval, equal")


def _texts(folder: Folder, record: Record, loaded: "Loaded", template: Any) -> Check:
    """Put a public pack's texts back from the pinned data, and score its answers again. The
    record's digests of questions and prompts must follow. Texts that a model wrote stay unknown:
    their scores are the author's word."""
    from evalkit.harness.scoring import score
    from evalkit.record.record import SampleFacts

    findings, facts = Findings("deep texts"), SampleFacts()
    lines = [canon.loads(raw) for _, raw in folder.gzip_lines(LINES)]
    answers = _answers(lines)
    scoring = score.Scoring(loaded, lambda leaf: answers.get(leaf, {}), template)
    made = groupby(scoring.samples(), key=lambda sample: (sample["task"], sample["doc_id"]))
    for line, group in zip_longest(lines, made):
        samples = [canon.finite(sample) for sample in group[1]] if group else []
        for sample in samples:
            facts.add(sample)
        if line is None or group is None:
            findings.add("the pack holds other documents than the pinned data")
            break
        findings.add(_document_problem(line, samples))
    for leaf, entry in record["tasks"].items():
        for key, parts in (("questions", facts.questions), ("prompts", facts.prompts)):
            found = canon.digest(parts.get(leaf, []))
            findings.add_unequal(f"{shown(leaf)}: the {key} digest", entry.get(key), found)
    rescored = sum("filtered" not in line for line in lines)
    return findings.check(
        f"{len(lines):,} documents are those of the pinned data; {rescored:,} scored again"
    )


def _answers(lines: list[PublicLine]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the answers by leaf task and request, as lm-eval scores them; texts are empty."""
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for line in lines:
        leaf, name = line["task"], f"{line['task']}/{line['doc_id']}"
        for index, repeats in enumerate(line["answers"]):
            for repeat, answer in enumerate(repeats):
                known = {"text": ""}
                if isinstance(answer, list):
                    known = {"loglikelihood": answer[0], "is_greedy": answer[1]}
                answers.setdefault(leaf, {})[f"{name}/{index}/{repeat}"] = known
    return answers


def _document_problem(line: PublicLine, samples: list[Sample]) -> str:
    """Say how a document of a public pack differs from the samples made again."""
    first, name = samples[0], f"{shown(line['task'])} document {line['doc_id']}"
    if (first["task"], first["doc_id"]) != (line["task"], line["doc_id"]):
        return f"{name} stands where {shown(first['task'])} {first['doc_id']} should"
    if "filtered" in line:
        return ""
    scored = {
        s["filter"]: {metric: value_of(s, metric) for metric in s["metrics"]} for s in samples
    }
    return "" if scored == line["metrics"] else f"{name}: lm-eval scores its answers otherwise"

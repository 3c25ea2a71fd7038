"""Checks that results.json, lm-eval's own account of the run, says what record.json says."""

from collections.abc import Mapping
from typing import Any

import evalkit
from evalkit.base import canon
from evalkit.harness.samples import RunResults
from evalkit.inputs.types import Number
from evalkit.record.reading.findings import Check, Findings, difference, few, shown
from evalkit.record.reading.folder import BROKEN, Folder, MiB, reason
from evalkit.record.sections import GroupResult, TaskResult
from evalkit.record.types import Record

MAX_RESULTS = 256 * MiB
_SECTIONS = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better")
# All that stands in it: what lm-eval 0.4.13 makes of samples, and what it says of its call.
_WRITTEN = {
    *_SECTIONS, "groups", "group_subtasks", "config", "git_hash", "date", "pretty_env_info",
    "transformers_version", "lm_eval_version", "upper_git_hash", "tokenizer_pad_token",
    "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length", "task_hashes",
    "model_source", "model_name", "model_name_sanitized", "system_instruction",
    "system_instruction_sha", "fewshot_as_multiturn", "chat_template", "chat_template_sha",
    "total_evaluation_time_seconds",
}  # fmt: skip


def read(folder: Folder, findings: Findings) -> RunResults | None:
    """Return the content of results.json, or None if it is not usable; note its problems."""
    results: RunResults
    try:
        content = results = folder.json("results.json", MAX_RESULTS)
        for name in _SECTIONS:
            if not isinstance(content[name], dict):
                raise TypeError(f"{name} is not a mapping")
    except BROKEN as error:
        findings.add(f"results.json: {reason(error)}")
        return None
    return results


def check(record: Record, results: RunResults, hashes: dict[str, str]) -> Check:
    """Compare every number, version, count and setting that both files hold. `hashes` are lm-eval's
    hashes of the leaf tasks, from the samples."""
    findings = Findings("results")
    _heads(record, results, hashes, findings)
    ours = record["environment"]["versions"]["evalkit"] == evalkit.__version__
    if ours and (made_up := results.keys() - _WRITTEN):  # a later release may write more
        findings.add(f"results.json holds what lm-eval does not write: {few(made_up)}")
    subtasks = {name: group["subtasks"] for name, group in record["groups"].items()}
    if results.get("group_subtasks", {}) != subtasks:
        findings.add("results.json's group_subtasks are not the record's")
    names = record["tasks"].keys() | record["groups"].keys()
    findings.add(difference(set(results["results"]), set(names), "entries of results.json"))
    made_up = results.get("groups", {}).keys() - record["groups"].keys()
    if made_up:
        findings.add(f"groups of results.json that the record does not have: {few(made_up)}")
    for name in sorted(names & results["results"].keys()):
        try:
            if name in record["tasks"]:
                _leaf(name, record["tasks"][name], results, findings)
            else:
                _group(name, record["groups"][name], results, findings)
        except BROKEN as error:
            findings.add(f"{shown(name)}: {reason(error)}")
    return findings.check("results.json and record.json agree")


def _heads(record: Record, results: RunResults, hashes: dict[str, str], findings: Findings) -> None:
    """Compare what results.json says of the whole run."""
    suite = record["suite"]
    call: dict[str, object] = {"limit": suite["limit"], "gen_kwargs": suite["gen_kwargs"] or None}
    call |= {f"{name}_seed": seed for name, seed in suite["seeds"].items()}
    call["model_args"] = f"pretrained={record['model']['reference']}"
    config = results.get("config") or {}
    for name, wanted in call.items():
        findings.add_unequal(f"results.json's config.{name}", wanted, config.get(name, wanted))
    heads: dict[str, object] = {
        "model_name": record["model"]["reference"],
        "system_instruction": suite["system_instruction"],
        "fewshot_as_multiturn": suite["fewshot_as_multiturn"],
        "task_hashes": hashes,
    }
    for name, wanted in heads.items():
        findings.add_unequal(f"results.json's {name}", wanted, results.get(name, wanted))
    template = results.get("chat_template")
    if template is not None:
        digest = canon.digest(template)
        findings.add_unequal("results.json's template", record["model"]["chat_template"], digest)


def _leaf(name: str, entry: TaskResult, results: RunResults, findings: Findings) -> None:
    _common(name, entry, results, findings)
    for key, found in (
        ("num_fewshot", results["n-shot"].get(name) or 0),
        ("n", results["n-samples"][name]["effective"]),
        ("documents", results["n-samples"][name]["original"]),
        ("output_type", results["configs"][name].get("output_type")),
    ):
        findings.add_unequal(f"{shown(name)}: {key}", entry.get(key), found)


def _group(name: str, entry: GroupResult, results: RunResults, findings: Findings) -> None:
    _common(name, entry, results, findings)
    if entry["metrics"]:
        findings.add(_unlike(name, entry, results.get("groups", {})[name]))


def _common(
    name: str, entry: TaskResult | GroupResult, results: RunResults, findings: Findings
) -> None:
    published = results["results"][name]
    findings.add(_unlike(name, entry, published))
    findings.add_unequal(f"{shown(name)}: version", entry["version"], results["versions"].get(name))
    for key, wanted in (("name", name), ("sample_len", entry["n"])):
        findings.add_unequal(f"{shown(name)}: {key}", wanted, published.get(key, wanted))
    findings.add_unequal(f"{shown(name)}: alias", entry["alias"], published.get("alias", name))
    ways = results["higher_is_better"].get(name) or {}
    for key, metric in entry["metrics"].items():
        way = ways.get(key.partition(",")[0])
        what = f"{shown(name)} {shown(key)}: higher_is_better"
        findings.add_unequal(what, metric["higher_is_better"], way)


def _unlike(name: str, entry: TaskResult | GroupResult, published: Mapping[str, Any]) -> str:
    """Name the first number of an entry that is another one in results.json."""
    wanted: dict[str, Number] = {}
    for key, metric in entry["metrics"].items():
        head, _, tail = key.partition(",")
        wanted[key] = metric["value"]
        if metric["stderr"] is not None:
            wanted[f"{head}_stderr,{tail}"] = metric["stderr"]
    found = {key: v for key, v in published.items() if "," in key and v != "N/A"}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            text = f"is {shown(found.get(key))}, in record.json {shown(wanted.get(key))}"
            return f"{shown(name)} {shown(key)} {text}"
    return ""

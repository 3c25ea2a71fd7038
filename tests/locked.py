"""The small run's lock and its single rows (lock.rows); the rows are written by evalkit's code."""

from typing import TYPE_CHECKING, Any

from questions import DOCUMENTS, SEEDS, SHOTS, directions, doc_hash, filter_name, metrics, sha256

from evalkit.inputs import rows
from evalkit.inputs.rows import Rows

if TYPE_CHECKING:
    from runs import Run

Value = dict[str, Any]


def lock(run: "Run") -> Value:
    """Return what lock.yaml says."""
    tasks: Value = {}
    for leaf, config in run.configs.items():
        hashes = "".join(doc_hash(doc) for doc in DOCUMENTS[leaf])
        tasks[leaf] = {
            "dataset": config["dataset_path"],
            "config": config.get("dataset_name"),
            "split": "test",
            "documents": len(DOCUMENTS[leaf]),
            "rows": f"sha256:{sha256(hashes)}",
            "shots": _shots() if config["num_fewshot"] else None,
            **scoring(run, leaf),
        }
    return {
        "schema": "evalkit/lock/2",
        "suite": run.name,
        "lm_eval": "0.4.13",
        "rows_file": f"sha256:{sha256(rows_file(run))}",
        "asked": {
            "apply_chat_template": False,
            "fewshot_as_multiturn": False,
            "system_instruction": None,
            "gen_kwargs": {},
            "seeds": dict(SEEDS),
        },
        "datasets": {
            name: {"revision": sha256(name)[:40], "licence": "mit", "redistributable": True}
            for name in sorted({task["dataset"] for task in tasks.values()})
        },
        "groups": run.groups,
        "group_scores": {
            name: {
                "alias": name,
                "version": "1",
                "metrics": {"acc": {"weight_by_size": True, "filters": None}},
            }
            for name in run.groups
        },
        "tasks": tasks,
    }


def scoring(run: "Run", leaf: str) -> Value:
    """How a leaf task is scored, as a lock pins it."""
    config = run.configs[leaf]
    listed = {entry["metric"]: entry for entry in config["metric_list"]}
    return {
        "output_type": config["output_type"],
        "num_fewshot": config["num_fewshot"],
        "version": config["metadata"]["version"],
        "metrics": {
            name: {
                "aggregation": listed[name].get("aggregation", "weighted_perplexity"),
                "higher_is_better": way,
            }
            for name, way in directions(metrics(config)).items()
        },
        "filters": [filter_name(config)],
        "settings": rows.of_settings(config),
    }


def asked(run: "Run", leaf: str) -> tuple[bytes, bytes]:
    """Digests of what each document is asked with, and of its target and continuations."""
    prompts, targets = b"", b""
    for doc in DOCUMENTS[leaf]:
        asked = run.prompts(leaf, doc)
        scored = [args[1] for args in asked if len(args) > 1 and isinstance(args[1], str)]
        prompts += rows.of_prompts([asked[0][0]])
        targets += rows.of_target(run.target(leaf, doc), scored)
    return prompts, targets


def rows_file(run: "Run") -> str:
    """lock.rows."""
    return rows.text(
        {
            leaf: Rows(
                documents=rows.joined(run.hashes[leaf]),
                prompts=run.locked[leaf][0],
                targets=run.locked[leaf][1],
                shots=rows.joined(SHOTS) if run.configs[leaf]["num_fewshot"] else None,
            )
            for leaf in run.configs
        }
    )


def _shots() -> Value:
    """The rows that shots are drawn from, as a lock pins them."""
    return {"split": None, "rows": len(SHOTS), "digest": f"sha256:{sha256(''.join(SHOTS))}"}

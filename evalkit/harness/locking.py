"""Makes a suite's lock: loads its tasks once and writes down which data they mean, to the row."""

from pathlib import Path

from evalkit import canon, hub
from evalkit import suite as suites
from evalkit.errors import EvalkitError, Exit
from evalkit.harness import data, tasks
from evalkit.suite import Lock, LockedDataset, Suite


def write_lock(name: str, *, update: bool = False, offline: bool = False) -> Path:
    """Make or refresh a suite's lock file; its path.

    Datasets that the lock already pins stay at their revision unless `update`.
    """
    suite = suites.load(name)
    lock = make_lock(suite, update=update, offline=offline)
    canon.write_atomic(suite.lock_path, lock.to_yaml())
    return suite.lock_path


def make_lock(suite: Suite, *, update: bool, offline: bool) -> Lock:
    """Load the whole suite and write down what was served."""
    import lm_eval

    known: dict[str, LockedDataset] = {}
    if suite.lock_path.is_file() and not update:
        known = suites.read_lock(suite.lock_path).datasets
    pins = data.Pins(
        revisions={k: d.revision for k, d in known.items() if not k.startswith("files:")},
        include_path=suite.include_path,
        offline=offline,
        resolve=_current_commit,
    )
    loaded = tasks.load(suite, pins)
    return Lock(
        suite=suite.name,
        lm_eval=lm_eval.__version__,
        datasets={
            repo: known[repo]
            if repo in known and known[repo].revision == revision
            else _describe(repo, revision)
            for repo, revision in pins.used.items()
        },
        groups=loaded.groups,
        tasks={name: leaf.locked for name, leaf in loaded.leaves.items()},
    )


def _current_commit(repo: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(hub.patiently(f"dataset {repo}", lambda: HfApi().dataset_info(repo)).sha)
    except hub.unreachable() as error:
        raise _not_told(repo, error) from None


def _not_told(repo: str, error: Exception) -> EvalkitError:
    return EvalkitError(
        f"can't ask the Hub about dataset {repo}: {hub.reason(error)}",
        fix=f"check its name, HF_ENDPOINT and the network ({type(error).__name__})",
        code=Exit.MISSING,
    )


def _describe(repo: str, revision: str) -> LockedDataset:
    """A dataset's licence as its card at this revision says it. Whether its texts may be passed on
    is our reading of that licence: yes for the open ones without a non-commercial clause."""
    if repo.startswith("files:"):
        return LockedDataset(revision, "the suite's own files", True)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def card() -> str:
        return str(hf_hub_download(repo, "README.md", repo_type="dataset", revision=revision))

    try:
        path = hub.patiently(f"the card of dataset {repo}", card)
        licence = hub.licence_in(Path(path))
    except RemoteEntryNotFoundError:  # it has none; another error is not taken for that
        licence = "unknown"
    except hub.unreachable() as error:
        raise _not_told(repo, error) from None
    open_ones = ("mit", "apache", "cc-by", "cc0", "bsd", "odc-by")
    redistributable = licence.lower().startswith(open_ones) and "-nc" not in licence.lower()
    return LockedDataset(revision, licence, redistributable)

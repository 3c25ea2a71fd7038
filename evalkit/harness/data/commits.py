"""Which commit of a dataset the Hub has now, and which one stands in for a revision that a lock
does not know.

A lock may say that a dataset's revision is unknown where only its rows could be proven. Then any
revision will do whose rows are the locked ones, which is checked row by row as always: the one that
is prepared here, else the Hub's current one.
"""

from evalkit.base.errors import EvalkitError, Exit
from evalkit.harness.data import cache
from evalkit.inputs import hub


def current(repo: str) -> str:
    """The commit that the Hub has now; EvalkitError (3) where it does not say."""
    from huggingface_hub import HfApi

    try:
        return str(hub.patiently(f"dataset {repo}", lambda: HfApi().dataset_info(repo)).sha)
    except hub.unreachable() as error:
        raise not_told(repo, error) from None


def not_told(repo: str, error: Exception) -> EvalkitError:
    """The error for a dataset of which the Hub says nothing."""
    return EvalkitError(
        f"can't ask the Hub about dataset {repo}: {hub.reason(error)}",
        fix=f"check its name, HF_ENDPOINT and the network ({type(error).__name__})",
        code=Exit.MISSING,
    )


def standing_in(repo: str, *, offline: bool) -> str:
    """The commit of a dataset whose revision the lock does not know."""
    prepared = {path.name for path in cache.folder_of(repo).glob("*/*/" + "[0-9a-f]" * 40)}
    if len(prepared) == 1:
        return prepared.pop()
    if not offline:
        return current(repo)
    raise EvalkitError(
        f"the lock knows no revision of dataset {repo}, and"
        f" {f'{len(prepared)} are' if prepared else 'none is'} prepared here",
        fix="run the same command once online with the same HF_HOME",
        code=Exit.MISSING,
    )

"""How the Hub is asked: again where that may help, in one line what it said where it does not.

huggingface_hub asks again itself where a file's metadata or a listing is refused, or a download
breaks off; not where it is asked for a commit, a connection is reset, or a file is answered with a
500. And it waits for as long as it is told to.
"""

import errno
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from evalkit.base.errors import EvalkitError, Exit

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that may be others a little later
WAITS_S = (1, 4, 10)  # before each further try
LONGEST_WAIT_S = 300  # that it may ask for: the Hub counts requests in windows of five minutes
FULL = os.strerror(errno.ENOSPC)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # read when it is first imported


def go_offline() -> None:
    """From now on nothing asks the network; before anything of the Hub's is imported."""
    os.environ |= OFFLINE


def home(environment: Mapping[str, str]) -> Path:
    """The client's folder, with its caches and its token."""
    return Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def token_path(environment: Mapping[str, str]) -> Path:
    """Where the client keeps a token, if there is one."""
    return Path(environment.get("HF_TOKEN_PATH") or home(environment) / "token")


def snapshot(folder: Path) -> tuple[str, str] | None:
    """The repo and the commit (40 hex) of a model's folder that is, or is a link to, a snapshot in
    a Hub's cache; None for any other."""
    *_, repo, kind, commit = ("", "", "", *folder.resolve().parts)
    named = re.fullmatch(r"models--(.+)", repo)
    if named is None or kind != "snapshots" or not re.fullmatch("[0-9a-f]{40}", commit):
        return None
    return named[1].replace("--", "/", 1), commit


def _client() -> Any:
    """huggingface_hub's HTTP client, which has another name from one release to the next."""
    from huggingface_hub import errors

    error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # the client's
    return sys.modules[error.__module__]


def unreachable() -> tuple[type[Exception], ...]:
    """Exceptions that say the Hub did not answer, or that the cache lacks what was asked for. The
    client raises its own errors where there is no connection; huggingface_hub's offline mode and an
    empty cache raise OSErrors."""
    client = _client()
    return OSError, client.HTTPError, client.InvalidURL


def _broken() -> tuple[type[Exception], ...]:
    """Exceptions that say a connection was there and broke."""
    client = _client()
    return client.ReadError, client.WriteError, client.CloseError, client.RemoteProtocolError


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and what it came of, up to the first that says what the Hub did."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        if hasattr(following, "response") or isinstance(following, _client().RequestError):
            break
        following = following.__cause__ or following.__context__
    return found


def _response(error: BaseException) -> Any:
    return getattr(_chain(error)[-1], "response", None)


def status(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None where it did not answer."""
    response = _response(error)
    return None if response is None else int(response.status_code)


def reason(error: BaseException) -> str:
    """What went wrong, as the second half of a sentence."""
    answered = status(error)
    if answered is not None:
        return f"the Hub answered {answered}"
    if FULL in str(error):
        return "the disk is full"
    if isinstance(_chain(error)[-1], _broken()):
        return "the connection to the Hub broke"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"there is an error: {error.strerror} ({error.filename})"
    return "the Hub can't be reached"


def patiently(what: str, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gets from the Hub, asked up to four times; raises what the last try raised. `what`
    is what is asked for, in words. Each wait is told on stderr."""
    for wait_s in WAITS_S:
        _mind_long_waits()
        try:
            return ask()
        except unreachable() as error:
            if not may_pass(error):
                raise
            wait_s = max(wait_s, _told_to_wait_s(_response(error)))
            log.warning("%s when asked for %s: asking again in %d s", reason(error), what, wait_s)
        time.sleep(wait_s)
    return ask()


def may_pass(error: Exception) -> bool:
    """Whether another try may help, and huggingface_hub has not made six already."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    chain, answered = _chain(error), status(error)
    path = str(getattr(getattr(_response(error), "request", None), "url", ""))
    listing, file = "/tree/" in path, "/resolve/" in path
    if any(isinstance(each, LocalEntryNotFoundError) for each in chain):  # a file's metadata
        return False
    if answered is not None:
        return answered in BUSY and not listing and not (file and answered in (408, 429))
    return isinstance(chain[-1], _broken()) or "Consistency check failed" in str(error)


def _told_to_wait_s(response: Any) -> int:
    """The seconds that a response says to wait; 0 where it says nothing, or there is none."""
    from huggingface_hub import utils

    headers = getattr(response, "headers", {})
    limit = utils.parse_ratelimit_headers(headers)  # type: ignore[attr-defined]  # lazily there
    if limit is not None and limit.remaining == 0 and response.status_code == 429:
        return int(limit.reset_in_seconds) + 1
    said = headers.get("retry-after", "")
    return int(said) if said.isdigit() else 0


def _mind_long_waits() -> None:
    """Have answers that ask for hours of patience end in an error: huggingface_hub would wait."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["response"]  # the session is another one after some errors
    if _refuse_long_wait not in hooks:
        hooks.append(_refuse_long_wait)


def _refuse_long_wait(response: Any) -> None:
    wait_s = _told_to_wait_s(response) if response.status_code in BUSY else 0
    if wait_s > LONGEST_WAIT_S:
        raise EvalkitError(
            f"the Hub answered {response.status_code} and says to wait {wait_s:,} s",
            where=response.url.path,
            fix="run the same command again after that: what was fetched is kept",
            code=Exit.MISSING,
        )


def model(
    reference: str,
    revision: str | None,
    *,
    offline: bool,
    wanted: list[str],
    look: Callable[[list[str]], None],
) -> tuple[Path, str]:
    """A model's files at one commit: (folder, 40 hex); each way to fail is one line. `wanted` are
    patterns of file names; `look` is shown the names before anything is fetched."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    asked = f"{reference}@{revision}" if revision else reference
    try:
        return patiently(
            f"model {asked}", lambda: _fetch(reference, revision, offline, wanted, look)
        )
    except GatedRepoError:
        what, fix = f"model {asked} is gated", "accept its terms and set HF_TOKEN to your token"
    except RevisionNotFoundError:
        what = f"model {reference} has no revision '{revision}'"
        raise EvalkitError(what, fix="give a branch, a tag or a commit") from None
    except RepositoryNotFoundError:
        what = f"there is no folder and no Hub model '{reference}'"
        fix = "check the name (a private model needs HF_TOKEN)"
    except HFValidationError:
        raise EvalkitError(f"'{reference}' is neither a folder nor a Hub id") from None
    except unreachable() as error:
        answered = status(error) is not None  # so its word is not passed over for the cache
        if not offline and not answered and FULL not in str(error):
            return model(reference, revision, offline=True, wanted=wanted, look=look)
        what, fix = _not_fetched(error, asked)
    raise EvalkitError(what, fix=fix, code=Exit.MISSING)


def _fetch(
    reference: str,
    revision: str | None,
    offline: bool,
    wanted: list[str],
    look: Callable[[list[str]], None],
) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download

    if not offline:
        info = HfApi().model_info(reference, revision=revision)
        look([sibling.rfilename for sibling in info.siblings or []])
    # by the name that was asked for, so that the cache knows its commit when offline
    folder = snapshot_download(
        reference,
        revision=revision,
        allow_patterns=wanted,
        ignore_patterns=["consolidated*"],  # the same weights once more, for another library
        local_files_only=offline,
    )
    return Path(folder), Path(folder).name


def sizes(repo: str, kind: str, revision: str | None) -> dict[str, int]:
    """Each file's bytes in a repo (`kind`: model or dataset) at a revision; nothing where the Hub
    does not tell, which the fetching itself will say better."""
    from huggingface_hub import HfApi

    def ask() -> dict[str, int]:
        tree = HfApi().list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
        return {entry.path: int(entry.size) for entry in tree if hasattr(entry, "size")}

    try:
        return patiently(f"the files of {kind} {repo}", ask)
    except ValueError:  # what is no repo's name
        return {}
    except unreachable():
        return {}


def licence(reference: str, revision: str | None) -> str:
    """A Hub model's licence by its card, or "unknown"; the card is fetched with it."""
    from huggingface_hub import hf_hub_download

    def ask() -> Path:
        return Path(hf_hub_download(reference, "README.md", revision=revision))

    try:
        return licence_in(patiently(f"the card of model {reference}", ask))
    except unreachable():  # it has none
        return "unknown"


def licence_in(card: Path) -> str:
    """The licence that a repo's card names, "unknown" where it names none or is no card."""
    from huggingface_hub import RepoCard

    try:
        found = RepoCard.load(card).data.get("license") or "unknown"
    except (OSError, ValueError):
        return "unknown"
    return found if isinstance(found, str) else ", ".join(found)


def _not_fetched(error: Exception, asked: str) -> tuple[str, str]:
    place = os.environ.get("HF_HOME", "~/.cache/huggingface")
    folder = os.environ.get("HF_HUB_CACHE", place)
    if FULL in str(error):
        return f"the disk is full ({folder})", "free space and try again"
    if status(error) is not None:
        what = f"{reason(error)} when asked for model {asked}"
        return what, "check HF_TOKEN and try again, or pass --offline to use what the cache has"
    what = f"no such folder; model {asked} is not in the cache, {reason(error)}"
    return what, f"run once online with the same HF_HOME ({folder}), or check HF_ENDPOINT"

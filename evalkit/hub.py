"""What can go wrong when the Hub is asked, as one tuple of exceptions to catch.

huggingface_hub's HTTP client raises its own errors where there is no connection, and its offline
mode and an empty cache raise OSErrors; both mean that the Hub can't be reached.
"""


def unreachable() -> tuple[type[Exception], ...]:
    """Exceptions that say the Hub did not answer, or that the cache lacks what was asked for."""
    import sys

    from huggingface_hub import errors

    error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # its client's
    client = sys.modules[error.__module__]  # named otherwise from one release to the next
    return OSError, error, client.InvalidURL

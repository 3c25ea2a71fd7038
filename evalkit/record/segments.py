"""The name of a segment, one process's stretch of a run: how it is written, and read back."""

import os
import re
import secrets
from datetime import UTC, datetime

NAME = re.compile(r"([0-9]{8}T[0-9]{6}Z)-(.+)-([0-9]+)-[0-9a-f]{4}", re.ASCII)  # see `name`


def name(started: str, host: str) -> str:
    """Return a name for a process's stretch of a run: when it `started` (as `events.now` has it),
    on which host, its process's number and a random end."""
    time = started[:19].replace("-", "").replace(":", "")
    return f"{time}Z-{host_in_name(host)}-{os.getpid()}-{secrets.token_hex(2)}"


def host_in_name(host: str) -> str:
    """Return a host's name as a segment's name has it: a host may be called anything, or nothing,
    and a file's name that travels is of ASCII letters."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in host)
    return plain[:40].strip("-") or "host"


def time_in_name(segment: str) -> datetime | None:
    """Return when a segment started, by its name; None where the name has no time."""
    try:
        return datetime.strptime(segment.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None

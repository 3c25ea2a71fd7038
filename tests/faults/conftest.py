"""The fault suite: what every test of it shares, and the table of what was survived."""

import os
from collections.abc import Iterator
from pathlib import Path

import fire
import pages
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
WRITE = "EVALKIT_WRITE_TABLE"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> fire.Fire:
    """A suite of twenty-odd batches and its answers when nothing happens."""
    return fire.make(tmp_path_factory.mktemp("fire"))


@pytest.fixture(scope="session")
def tell() -> Iterator[fire.Tell]:
    """Takes down a row of the page's table: a fault, how runs with it ended, and how many did; the
    same fault and end again add up. Written where the command asks for it, beside the rows of what
    did not run this time."""
    rows: dict[tuple[str, str], int] = {}

    def row(fault: str, ended: str, times: int = 1) -> None:
        rows[fault, ended] = rows.get((fault, ended), 0) + times

    yield row
    made = {key: f"| {key[0]} | {key[1]} | {times} |" for key, times in rows.items()}
    print("\n".join(["", *(made[key] for key in sorted(made))]))
    if not os.environ.get(WRITE):
        return
    table = pages.rows(PAGE, 2) | made
    pages.write(PAGE, (table[key] for key in sorted(table)))

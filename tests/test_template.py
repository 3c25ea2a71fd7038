"""The template that workers are forked from: how workers end is told, whatever ends first, and
nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit.run.processes import template as templates
from evalkit.run.processes.template import Template

# The command with nothing to import. A worker says who it is, and ends as it is told.
PLAIN = """
import os, sys, time, types
import evalkit
evalkit.engine = sys.modules["evalkit.engine"] = types.ModuleType("evalkit.engine")
evalkit.engine.import_all = lambda: time.sleep({seconds})
from evalkit.run.processes import template
template.serve(int(sys.argv[-1]))
print(os.getpid(), flush=True)
print("a word on stderr", file=sys.stderr, flush=True)
sys.exit(int(sys.stdin.readline() or 75))
"""


def started(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> Template:
    code = PLAIN.format(seconds=seconds)
    monkeypatch.setattr(templates, "COMMAND", (sys.executable, "-P", "-c", code))
    return Template(dict(os.environ))


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    made = started(monkeypatch)
    yield made
    made.end()


def is_there(process: int) -> bool:
    """Whether a process lives: one that has ended may still be listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_worker_has_streams_of_its_own_and_tells_what_it_returned(template: Template) -> None:
    forked = [template.fork() for _ in range(3)]
    processes = []
    for code, each in enumerate(forked):
        each.stdin.write(b"%d\n" % code)
        each.stdin.flush()
    for code, each in enumerate(forked):
        processes.append(int(each.stdout.readall()))
        assert each.stderr.readall() == b"a word on stderr\n"
        assert each.wait() == code
    assert len({*processes, os.getpid()}) == 4


def test_a_killed_worker_is_told_of_and_others_go_on(template: Template) -> None:
    first, second = template.fork(), template.fork()
    assert int(first.stdout.readline())
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second.stdin.write(b"7\n")
    second.stdin.flush()
    assert second.wait() == 7


def test_a_worker_whose_parent_closes_its_stdin_ends_by_itself(template: Template) -> None:
    forked = template.fork()
    forked.stdin.close()
    assert forked.wait() == 75


def test_a_worker_that_is_killed_before_it_is_there_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = started(monkeypatch, seconds=3600)  # imports from a disk that hangs
    first, second = slow.fork(), slow.fork()
    first.kill()
    assert first.wait() == second.wait() == templates.DIED
    slow.end()


def test_a_template_that_no_worker_was_forked_from_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started(monkeypatch, seconds=3600).end()


def test_hundreds_of_workers_find_descriptors_where_a_shell_allows_few() -> None:
    """In a process of its own, whose limit is lowered first."""
    code = """
import resource, sys
from evalkit.run.processes import template
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
template.COMMAND = (sys.executable, "-c", "import time; time.sleep(60)")
made = template.Template({})
forked = [made.fork() for _ in range(40)]
forked[0].kill()
assert {each.wait() for each in forked} == {template.DIED}
made.end()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_template_that_dies_takes_nothing_with_it(template: Template) -> None:
    forked, late = template.fork(), template.fork()
    # Both are past their start, in which a worker has the template's end of the link for a moment.
    process, _ = int(forked.stdout.readline()), int(late.stdout.readline())
    os.kill(template._process.pid, signal.SIGKILL)
    template._process.wait()
    with pytest.raises(OSError):
        template.fork()
    assert is_there(process)
    for each in (forked, late):
        each.stdin.close()
        each.stdout.readall()
        assert each.wait() == templates.DIED, "nobody knows what it returned"


def test_signals_to_the_whole_group_do_not_end_it(template: Template) -> None:
    forked = template.fork()
    assert forked.stdout.readline()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(template._process.pid, number)
    forked.stdin.write(b"3\n")
    forked.stdin.flush()
    assert forked.wait() == 3


def test_nothing_is_left_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(monkeypatch)
    forked = made.fork()
    process = int(forked.stdout.readline())
    made.end()  # as where the parent is killed: the link and the streams are closed
    assert not is_there(made._process.pid)
    forked.stdin.close()
    forked.stdout.readall()
    assert forked.wait() in (75, templates.DIED)
    deadline = time.monotonic() + 20
    while is_there(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_there(process)

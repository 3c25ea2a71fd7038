"""The command line: each command parses its options, calls one library function, prints and exits.

Messages for people go to stderr. stdout is for programs: the run folder's path as the last line, or
JSON. An error is one line; a bug's traceback goes into a file. The commands are in six modules:
`running` (runs), `judging` (records), `showing` (pages, exports), `sharing` (signatures, packs),
`hosting` (hosts) and `submitting` (clusters).
"""

import atexit
import errno
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from itertools import chain
from typing import NoReturn

import click

import evalkit
from evalkit.base import bounded, private, stopping
from evalkit.base.errors import EvalkitError, Exit, no_right
from evalkit.base.machine import steering
from evalkit.cli import hosting, judging, running, sharing, showing, submitting
from evalkit.host import inside

# The commands in groups, each in the order of use.
COMMANDS = {
    "Run a suite": (
        running.eval_command,
        running.plan_command,
        running.execute_command,
        running.finish_command,
        hosting.grade_command,
        running.status_command,
        running.lock_command,
    ),
    "Judge a record": (
        judging.verify_command,
        judging.audit_command,
        judging.reproduce_command,
        judging.compare_command,
        judging.validate_command,
    ),
    "Show results": (
        showing.report_command,
        showing.export_command,
        showing.check_table_command,
        showing.import_command,
    ),
    "Share a record": (sharing.sign_command, sharing.seal_command, sharing.pack_command),
    "Hosts": (
        hosting.doctor_command,
        hosting.launch_command,
        hosting.stage_command,
        submitting.submit_command,
        submitting.cancel_command,
        submitting.manifest_command,
    ),
}
RESUMED = {"eval", "plan", "execute", "finish", "stage", "submit", "reproduce"}


class Group(click.Group):
    """A group of commands whose help lists them by subject."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each subject."""
        for title, commands in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(command.name or "", command.get_short_help_str(60)) for command in commands]
                )


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(evalkit.__version__, prog_name="evalkit")
def cli() -> None:
    """Evaluate a language model and leave a record that anyone can verify.

    \b
    evalkit eval --model demo --suite demo
    evalkit verify results/demo/demo-*
    """


for _command in (*chain.from_iterable(COMMANDS.values()), running.worker_command):
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line as this whole process, and end it at once: Python would take a second
    to free what torch and lm-eval hold."""
    code: object = 0
    try:
        run()
    except SystemExit as end:
        code = end.code
    atexit._run_exitfuncs()  # what libraries and we ourselves remove at the end
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # it was said when it was written
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def run() -> None:
    """Run the command line; every way out has its exit code."""
    os.umask(private.umask())
    stopping.at_once()
    try:
        inside.enter()
        steering.clear()
        cli(standalone_mode=False)
    except bounded.Crashed as crash:
        _bug(crash.trace)
    except EvalkitError as error:
        _say(f"evalkit: {error}")
        sys.exit(error.code)
    except ModuleNotFoundError as error:
        _end_without_image()
        if (error.name or "").split(".")[0] == "evalkit":
            _bug()
        told = " ".join(["evalkit", "launch", *sys.argv[1:2], "..."])
        _say(f"evalkit: {error.name} is not in this light install: run it in the image (`{told}`), "
             "or run `make setup LOCK=cpu`")  # fmt: skip
        sys.exit(Exit.MISSING)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        is_resumed = sys.argv[1:2] and sys.argv[1] in RESUMED
        kept = "; what is done is kept, and the same command continues it" if is_resumed else ""
        _say(f"evalkit: stopped{kept}")
        sys.exit(Exit.STOPPED)
    except PermissionError as error:
        _say(f"evalkit: {no_right(error.filename)}")
        sys.exit(Exit.MISSING)
    except Exception as error:  # the one place where a bug is turned into a line and a file
        _end_without_image()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say(f"evalkit: the output can't be written: {error.strerror}")
            sys.exit(Exit.MISSING)
        _bug()


def _end_without_image() -> None:
    """Exit if the image is gone: a stopped container may lose its file system before its processes,
    and what fails then is no bug."""
    if inside.is_gone():
        _say("evalkit: its image went away under it; what is done is kept, and the same command"
             " continues it")  # fmt: skip
        sys.exit(Exit.STOPPED)


def _bug(trace: str = "") -> NoReturn:
    """Say that this is our fault, keep the traceback in a file, and exit."""
    handle, name = tempfile.mkstemp(prefix="evalkit-traceback-", suffix=".txt")
    os.write(handle, (trace or traceback.format_exc()).encode())
    os.close(handle)
    _say(f"evalkit: a bug in evalkit {evalkit.__version__}; its traceback is in {name}")
    sys.exit(Exit.BUG)


def _say(line: str) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    click.echo(click.style(line, fg="red") if colour else line, err=True)

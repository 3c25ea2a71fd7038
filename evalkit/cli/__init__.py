"""The command line: parse, call one library function, print, exit.

People read stderr; stdout is for programs: a run folder's path as its last line, or JSON. One error
is one line. A bug leaves its traceback in a file, not on the screen. The commands stand beside this
file: `running` makes runs, `judging` judges what they left, `showing` lets people look at it, and
`hosting` is for where they run.
"""

import os
import sys
import tempfile
import traceback
from typing import NoReturn

import click

import evalkit
from evalkit.base import steering, stopping
from evalkit.base.errors import EvalkitError, Exit
from evalkit.cli import hosting, judging, running, showing
from evalkit.host import inside


class Group(click.Group):
    """Shows the commands in the order they are used, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands as they were added."""
        return list(self.commands)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(evalkit.__version__, prog_name="evalkit")
def cli() -> None:
    """Evaluate a language model, and leave a record that anyone can check.

    \b
    evalkit eval --model demo --suite demo
    evalkit verify results/demo/demo-*
    """


for _command in (
    running.eval_command,
    running.plan_command,
    running.execute_command,
    running.worker_command,
    running.finish_command,
    judging.verify_command,
    judging.sign_command,
    judging.audit_command,
    judging.reproduce_command,
    judging.compare_command,
    judging.validate_command,
    showing.report_command,
    showing.export_command,
    showing.check_table_command,
    showing.import_command,
    judging.pack_command,
    running.status_command,
    running.lock_command,
    hosting.stage_command,
    hosting.launch_command,
    hosting.doctor_command,
    hosting.submit_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; every way out has its exit code."""
    os.umask(0o077)  # what a run leaves is the user's alone
    stopping.at_once()
    try:
        inside.enter()
        steering.clear()
        cli(standalone_mode=False)
    except EvalkitError as error:
        _say(f"evalkit: {error}")
        sys.exit(error.code)
    except ModuleNotFoundError as error:
        _end_without_image()
        if (error.name or "").split(".")[0] == "evalkit":
            _bug()
        _say(f"evalkit: {error.name} is not in this light install: run `make setup LOCK=cpu`")
        sys.exit(Exit.MISSING)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("evalkit: stopped; what is done is kept, and the same command continues it")
        sys.exit(Exit.STOPPED)
    except Exception:  # the one place where a bug is turned into a line and a file
        _end_without_image()
        _bug()


def _end_without_image() -> None:
    """What fails because the image went away is no bug: a container that is stopped may lose its
    file system before its processes."""
    if inside.is_gone():
        _say("evalkit: its image went away under it; what is done is kept, and the same command"
             " continues it")  # fmt: skip
        sys.exit(Exit.STOPPED)


def _bug() -> NoReturn:
    """Say that this is our fault, keep the traceback in a file, and exit."""
    handle, name = tempfile.mkstemp(prefix="evalkit-traceback-", suffix=".txt")
    os.write(handle, traceback.format_exc().encode())
    os.close(handle)
    _say(f"evalkit: a bug in evalkit {evalkit.__version__}; its traceback is in {name}")
    sys.exit(Exit.BUG)


def _say(line: str) -> None:
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    click.echo(click.style(line, fg="red") if colour else line, err=True)

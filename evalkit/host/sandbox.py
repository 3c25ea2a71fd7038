"""Runs one program that a model wrote, in a container of its own, without network, capabilities or
writable files, with limits of time and memory.

It passed if the code around it could print a word at the end that the program does not know. A
program could search its process for that word: like every such harness, this tells working programs
from others, not honest ones from cheats.
"""

import secrets
import subprocess
from dataclasses import dataclass

from evalkit.base.errors import EvalkitError, Exit
from evalkit.host.launch.command import OF_SIFS, Image, Runtime

# The limits hold in every runtime, even in one without limits. The word is the first line of stdin.
_INSIDE = """
import os, resource, signal, sys, time
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
def run():
    word, _, text = sys.stdin.buffer.read().partition(b"\\n")
    for limit, most in (("CPU", seconds), ("AS", memory), ("FSIZE", 0), ("CORE", 0)):
        resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
    out = os.dup(1)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    code = compile(text.decode("utf-8", "surrogatepass"), "program", "exec")
    exec(code, {"__name__": "__main__"})
    os.write(out, word)
child = os.fork()
if not child:
    run()
    os._exit(0)
ended, last = 0, time.monotonic() + seconds
while not ended and time.monotonic() < last:
    ended, status = os.waitpid(child, os.WNOHANG)
    time.sleep(0.01)
if not ended:
    os.kill(child, signal.SIGKILL)
    os._exit(142)
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""
_STARTING_S = 60  # for the runtime, besides the program's own time
_OUT_OF_TIME = (142, 256 - 24, 256 - 9)  # exit codes: by the clock; SIGXCPU, SIGKILL: CPU time
_NOT_STARTED = {"docker": (125, 126, 127), "podman": (125, 126, 127)} | dict.fromkeys(
    OF_SIFS, (255,)
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take: seconds, and bytes of memory."""

    seconds: int = 10
    memory_bytes: int = 1 << 30


def command_line(runtime: Runtime, image: Image, name: str, limits: Limits) -> list[str]:
    """Return the command line that runs one program. `name`: the container's. A pure function."""
    python = ["-I", "-c", _INSIDE, str(limits.seconds), str(limits.memory_bytes)]
    if runtime.name in OF_SIFS:
        return [
            runtime.name, "--quiet", "exec", "--containall", "--cleanenv", "--no-home",
            "--no-privs", "--no-mount", "bind-paths,tmp", "--net", "--network", "none",
            "--pwd", "/", image.reference, "python3", *python,
        ]  # fmt: skip
    memory = str(limits.memory_bytes)
    command = [runtime.name, "run", "--rm", "--interactive", "--name", name, "--read-only"]
    command += ["--read-only-tmpfs=false"] if runtime.name == "podman" else []
    command += ["--network", "none", "--ipc", "none", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--user", "65534:65534"]
    command += ["--pids-limit", "64", "--memory", memory, "--memory-swap", memory]
    return [*command, "--workdir", "/", "--entrypoint", "python3", image.reference, *python]


def run(runtime: Runtime, image: Image, program: str, limits: Limits) -> str:
    """Run a program: `passed`, `failed` or `timed out`; EvalkitError (3) where it can't start."""
    name, word = f"evalkit-grade-{secrets.token_hex(8)}", secrets.token_hex(16)
    command = command_line(runtime, image, name, limits)
    text = f"{word}\n{program}".encode("utf-8", "surrogatepass")
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, timeout=limits.seconds + _STARTING_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        if runtime.name not in OF_SIFS:
            subprocess.run([runtime.name, "rm", "--force", name], capture_output=True, check=False)
        return "timed out"
    if done.returncode in _NOT_STARTED[runtime.name]:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        raise EvalkitError(
            f"{runtime.name} can't run a program in the image: {reason[:200]}",
            fix="`evalkit doctor` says what is here", code=Exit.MISSING,
        )  # fmt: skip
    if done.returncode == 0 and done.stdout == word.encode():
        return "passed"
    return "timed out" if done.returncode in _OUT_OF_TIME else "failed"

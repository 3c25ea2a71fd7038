"""Makes the command line that runs evalkit in its image. A pure function.

The container gets only what is named: the folders of `Work`, each at its path on the host, a
scratch folder, environment variables. The image is read-only; no capabilities, and no network
unless something must be downloaded. Runtimes show command lines to other users, so secrets go
through a file (`start`).
"""

from dataclasses import dataclass

from evalkit.base.machine import stamp

PLACES = ("docker", "podman", "apptainer", "singularity", "none")
OF_SIFS = ("apptainer", "singularity")  # the second takes the same options
SCRATCH = "/var/cache/evalkit"  # where the image has its HOME, caches and temporary files
EMPTY = "empty"  # a folder in the scratch folder, mounted as a working folder without content
# Apptainer's options for no network, and those where the host forbids network namespaces.
SHARED_NETWORK = ("--env", f"{stamp.NETWORK}=open")
NO_NETWORK = ("--net", "--network", "none", "--env", f"{stamp.NETWORK}=none")


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that runs containers. `rootless`: it runs without root's rights, and the
    container's user 0 is the caller; `labels`: SELinux labels files here; `isolates`: a container
    can be without a network."""

    name: str
    version: str
    rootless: bool = False
    labels: bool = False
    isolates: bool = True


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name for the runtime (a SIF's path for apptainer), its digest (`sha256:<hex>`),
    and `of`, what the digest is of: a registry's `manifest`, a local image's `config`, a `sif`."""

    reference: str
    digest: str
    of: str


@dataclass(frozen=True, slots=True)
class Work:
    """What to run, and everything of the host that it may see.

    `arguments`: evalkit's, without the word evalkit. `folder`: the working folder. `readable` and
    `writable`: absolute paths of files and folders. `scratch`: a folder for temporary files.
    `environment`: variables and their values, none of them secret. `user`: `uid:gid` of the caller.
    `name`: the container's. `group`: the number of a further group of the caller.
    """

    arguments: tuple[str, ...]
    folder: str
    scratch: str
    user: str
    hostname: str
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    online: bool = False
    gpus: bool = False
    terminal: bool = False
    name: str = ""
    group: str = ""


def command_line(runtime: Runtime | None, image: Image | None, work: Work) -> list[str]:
    """Return the command line that runs `work` in `image`, or without `runtime` on the host."""
    if runtime is None or image is None:
        return ["evalkit", *work.arguments]
    if runtime.name in OF_SIFS:
        return _apptainer(runtime, image, work)
    return _docker(runtime, image, work)


def asserted(runtime: Runtime, image: Image) -> str:
    """Return what the record says of the image, in four words: evalkit can't see it from inside."""
    return f"{image.of} {image.digest} {runtime.name} {runtime.version}"


def _docker(runtime: Runtime, image: Image, work: Work) -> list[str]:
    """Return docker's command line; podman's differs for GPUs and the owner of files."""
    podman = runtime.name == "podman"
    user = "0:0" if runtime.rootless and not podman else work.user
    gpus = ("--device", "nvidia.com/gpu=all") if podman else ("--gpus", "all")
    command = [runtime.name, "run", "--rm", "--read-only", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--user", user]
    command += ["--group-add", work.group] if work.group else []
    command += ["--userns", "keep-id"] if runtime.rootless and podman else []
    # without it podman makes /tmp and other folders of the image writable
    command += ["--read-only-tmpfs=false"] if podman else []
    # Relabelling would be permanent, and would change folders that others use.
    command += ["--security-opt", "label=disable"] if runtime.labels else []
    command += ["--hostname", work.hostname]
    command += ["--name", work.name] if work.name else []
    command += [] if work.online else ["--network", "none"]
    command += ["--env", f"{stamp.NETWORK}={'open' if work.online else 'none'}"]
    command += gpus if work.gpus else ()
    command += ["--interactive", "--tty"] if work.terminal else []
    command += _mounts(work, "readonly")
    for name, value in (*work.environment, (stamp.IMAGE, asserted(runtime, image))):
        command += ["--env", f"{name}={value}"]
    return [*command, "--workdir", work.folder, image.reference, *work.arguments]


def _apptainer(runtime: Runtime, image: Image, work: Work) -> list[str]:
    """Return apptainer's command line, which shares nothing of the host that is not named."""
    command = [runtime.name, "--quiet", "run", "--containall", "--cleanenv", "--no-home"]
    command += ["--no-privs", "--no-mount", "bind-paths,tmp"]
    command += SHARED_NETWORK if work.online or not runtime.isolates else NO_NETWORK
    command += ["--nv"] if work.gpus else []
    command += _mounts(work, "ro")
    shown = (*work.readable, *work.writable)
    if not any(_is_within(p, work.folder) or _is_within(work.folder, p) for p in shown):
        # without a mount the working folder does not exist in the image
        nothing = f"{work.scratch}/{EMPTY}"
        command += ["--mount", _mount(nothing, work.folder, "ro")]
    for name, value in (*work.environment, (stamp.IMAGE, asserted(runtime, image))):
        command += ["--env", f"{name}={value}"]
    return [*command, "--pwd", work.folder, image.reference, *work.arguments]


def _mounts(work: Work, read_only: str) -> list[str]:
    """Return the options that mount every folder at its own path, outer ones first: a writable
    folder inside a read-only one stays writable."""
    places = {path: path in work.writable for path in (*work.readable, *work.writable)}
    mounts = [(SCRATCH, work.scratch, True)]
    mounts += [(path, path, places[path]) for path in sorted(places)]
    words = []
    for inside, outside, writable in mounts:
        words += ["--mount", _mount(outside, inside, "" if writable else read_only)]
    return words


def _mount(outside: str, inside: str, how: str) -> str:
    fields = ["type=bind", f"source={outside}", f"destination={inside}", *([how] if how else [])]
    return ",".join(_quoted(field) for field in fields)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _quoted(field: str) -> str:
    """Quote a field of a comma-separated line."""
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"') else field

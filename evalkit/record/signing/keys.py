"""Ed25519 keys: making one, reading it, and whose it is.

Private keys are read from OpenSSH or PEM files, public ones also from an OpenSSH `allowed_signers`
file, which gives keys their owners' names. No other kind of key is taken, and no certificate: a
local key proves who signed, never when.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from evalkit.base import canon
from evalkit.base.errors import EvalkitError

NAMESPACE = "evalkit"  # what an allowed_signers line may name in namespaces="..."
MAX_FILE = 1 << 20
MAX_TRIES = 20_000  # of keys on signatures, each counted for its message's length: seconds
_TRY_BYTES = 1 << 16
_KIND = "ssh-ed25519"
_KINDS = ("ssh-", "sk-", "ecdsa-", "webauthn-")  # how all kinds' names begin
_OPTION = re.compile(r"""([\w-]+)(?:="([^"]*)")?""")
_WORD = re.compile(r"""(?:[^\s"]|"[^"]*")+""")

Ask = Callable[[], str]  # asks the user for a passphrase


@dataclass(frozen=True, slots=True)
class Public:
    """A public key: its 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """A DSSE envelope's keyid: sha256 (hex) of the key's DER."""
        der = self._key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    @property
    def fingerprint(self) -> str:
        """What `ssh-keygen -l` prints of it."""
        blob = base64.b64decode(self.openssh.split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")

    @property
    def openssh(self) -> str:
        """`ssh-ed25519 <base64>`, without the comment, which may name a host."""
        return self._key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether it made this signature of this message."""
        try:
            self._key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)


class Tries:
    """How many more keys are tried on a file's signatures."""

    def __init__(self) -> None:
        self._left = MAX_TRIES

    def take(self, message: bytes) -> None:
        """Count one on a message; ValueError where it is one too many."""
        self._left -= 1 + len(message) // _TRY_BYTES
        if self._left < 0:
            raise ValueError(f"the file is over the limit of {MAX_TRIES:,} keys to try")


class Private:
    """A private key in memory; it is never shown and only `make` writes one."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> Public:
        """The key that checks what this one signs."""
        return Public(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._key.sign(message)


def make(path: Path) -> Public:
    """Write a new key without a passphrase to `path`, for its owner alone, and `<path>.pub`."""
    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise EvalkitError(
                "there is a file of that name", where=str(file), fix="choose another"
            )
    key = Ed25519PrivateKey.generate()
    canon.make_folder(path.parent)
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    canon.write_atomic(path, text, private=True)
    found = Private(key).public
    canon.write_atomic(public, found.openssh + "\n")
    return found


def private(path: Path, ask: Ask | None = None) -> Private:
    """The key in an OpenSSH or PEM file; `ask` is called where it has a passphrase."""
    data = _read(path)
    if data.lstrip().startswith(b"ssh-"):
        fix = f"give the private one, {path.name.removesuffix('.pub')}"
        raise EvalkitError("this is a public key", where=str(path), fix=fix)
    load = load_ssh_private_key if b"OPENSSH PRIVATE" in data else load_pem_private_key
    try:
        try:
            key = load(data, None)
        except TypeError:  # cryptography's word for "it has a passphrase"
            if ask is None:
                raise EvalkitError("the key has a passphrase", where=str(path)) from None
            key = load(data, ask().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        what = f"no key can be read from it: {error}"
        raise EvalkitError(what, where=str(path), fix=_fix(path)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EvalkitError("the key is not an ed25519 one", where=str(path), fix=_fix(path))
    return Private(key)


def _fix(path: Path) -> str:
    return f"make one with `evalkit sign --new-key --key {path.name}`"


def public(path: Path) -> Public:
    """The public key in an OpenSSH (`.pub`) or PEM file."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        fix = f"give its public half, {path.name}.pub, to check a signature"
        raise EvalkitError("this is a private key", where=str(path), fix=fix)
    try:
        return parsed(data.decode())
    except ValueError as error:
        raise EvalkitError(str(error), where=str(path), fix="give an ed25519 .pub file") from None


def parsed(text: str) -> Public:
    """The public key that a text holds, OpenSSH's form or PEM; ValueError where it is none."""
    ssh = " ".join(text.split()[:2])
    try:
        pem = "BEGIN" in text
        key = load_pem_public_key(text.encode()) if pem else load_ssh_public_key(ssh.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("no public key can be read from it") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the key is not an ed25519 one")
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    if _is_anybodys(raw):
        raise ValueError("it is no key: signatures of it can be made without one")
    return Public(raw)


_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P


def _is_anybodys(raw: bytes) -> bool:
    """Whether a public key is of small order (RFC 8032, 5.1), or none: anybody signs for it."""
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    if y >= _P:
        return True
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if (x * x - square) % _P:
        return True
    for _ in range(3):  # eight times the point
        product = _D * x * x * y * y
        x, y = (
            2 * x * y * pow(1 + product, -1, _P) % _P,
            (y * y + x * x) * pow(1 - product, -1, _P) % _P,
        )
    return (x, y) == (0, 1)


def allowed(path: Path) -> dict[Public, str]:
    """Whose each key in an allowed_signers file is, as `ssh-keygen -Y verify` reads it. Refuses
    what would need a time (`valid-after`) or a certificate; lines for other namespaces and other
    kinds of key are passed over."""
    found: dict[Public, str] = {}
    for number, line in enumerate(_read(path).decode(errors="replace").splitlines(), 1):
        words = _WORD.findall(line)
        if not words or words[0].startswith("#"):
            continue
        kind = next((i for i, word in enumerate(words) if word.startswith(_KINDS)), 0)
        where = f"{path}, line {number}"
        if not kind or len(words) < kind + 2:
            raise EvalkitError("not a line of allowed_signers", where=where, fix=_FORM)
        if words[kind] != _KIND or not _for_us(words[1:kind], where):
            continue
        try:
            key = parsed(" ".join(words[kind : kind + 2]))
        except ValueError as error:
            raise EvalkitError(str(error), where=where, fix=_FORM) from None
        name = words[0].strip('"')
        known = found.get(key, name)
        found[key] = known if known == name else f"{known},{name}"  # all are this key's owner
    return found


_FORM = "write `name ssh-ed25519 AAAA...`"


def _for_us(options: Iterable[str], where: str) -> bool:
    for name, value in _OPTION.findall(",".join(options)):
        if name.lower() == "namespaces":
            if NAMESPACE not in value.split(","):
                return False
        else:
            what = f"{name} can't be held against a signature without a time"
            raise EvalkitError(what, where=where, fix="leave it out")
    return True


def _read(path: Path) -> bytes:
    return canon.read_given(path, MAX_FILE, "the key file")

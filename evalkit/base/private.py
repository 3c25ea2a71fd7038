"""What others must not see: credentials and this machine's paths in what is published, and files
that are the user's or a group's.

Everything that a user enters may get into a record, a log or a pack. Arguments that look like
credentials are refused, because they are part of a run's identity. Command lines, options and
errors are published without credentials, without the parts of an address that may hold them (user,
query, fragment), and with only the last part of a path.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from evalkit.base.errors import EvalkitError

HIDDEN = "(hidden)"
GROUP = "EVALKIT_GROUP"  # the number of a Unix group that may read new files
_NAMES = (
    r"api_?key|access_?key|key|secret|passw(or)?d|passphrase|passwd|pwd|auth(orization)?|headers?|"
    r"credentials?|bearer|cookies?|sess(ion)?(_?id)?|sig(nature)?|jwt|"
    r"(auth|access|api|hf|bearer|refresh|session|id|sas|security|private|csrf|xsrf|deploy|user)_?token"
)
_NAME = re.compile(rf"(^|[_.\-\s])({_NAMES})([_.\-\s]|$)|^token$", re.I)
# Tokens by how the usual services' begin, web tokens, keys in PEM's form, schemes of authorisation.
_BEGINS = re.compile(
    r"(?<![A-Za-z0-9])("
    r"(sk|pk|rk|hf|api_org|gh[opsur]|github_pat|glpat|gsk|xai|r8|fw|pplx|nvapi|tgp_v1|csk|co|jina|"
    r"pypi|npm|dapi|dckr_pat|dop_v1|shpat|sq0atp|xox[abeprs]|ATATT|SG|hvs|lin_api|ya29|whsec|"
    r"ntn|figd|sntrys|vercel|key|tok|xapp|phc)[-_.][\w.-]{16,}"
    r"|(AIza|AKIA|ASIA|dapi|ATATT|EAAC)[\w-]{12,}|sk-\w+-\w{8,}|eyJ[\w-]{6,}\.[\w.-]*"
    r"|(basic|bearer|digest|negotiate)\s+[\w+/=.~-]{8,})"
    r"|^(basic|bearer|digest|token|negotiate|aws4-hmac-sha256)\s+[\w+/=.~-]{3,}$",
    re.I,
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*(KEY|CERTIFICATE).*", re.S)
# A name of a credential and a value, in an address, a header, a cookie or JSON.
_PAIR = re.compile(
    rf"(^|[^\w-])[\"']?(([\w-]*[_-])?({_NAMES}|j?session\w*|phpsessid|csrf\w*|set-cookie)|sid|token)[\"']?"
    r"\s*(=|:(?!//))\s*[\"']?[^\s\"',;&]+",
    re.I,
)
_CAMEL = re.compile(
    r"(?:(?:[A-Za-z]+[a-z])?(Signature|Key|Secret|Password|Token|Cookie)"
    r"|\b[A-Z0-9_]*(PASSWORD|PASSWD|SECRET|TOKEN|APIKEY))=[^\s;&,]{2,}"
)
_USER = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]*@", re.I)
_LOOSE_USER = re.compile(r"(^|[/\s\"'=])[^\s/@:\"']+:[^\s/@:\"']+@[\w.-]+")
# Words of letters and digits that nobody chose: 32 hex digits and more (a commit has 40, a digest
# 64), a UUID, a long word of small and capital letters and digits, base64.
_HEX = re.compile(r"(?<![0-9A-Za-z:])[0-9a-f]{32,}(?![0-9A-Za-z])", re.I)
_UUID = re.compile(r"(?<!\w)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?!\w)", re.I)
_MIXED = re.compile(
    r"(?<![A-Za-z0-9+/])(?=[\w+/]*[a-z])(?=[\w+/]*[A-Z])(?=[\w+/]*[0-9])"
    r"(\w{28,}|[A-Za-z0-9+/]{22,}={1,2}|(?=[\w/]*\+)[A-Za-z0-9+/]{28,}"
    r"|(?<![\w.-])[A-Za-z0-9+/]{40}(?![\w+/.-]))"  # the last: AWS's, which may hold a slash
)
_FORMS = (_BEGINS, _PEM, _PAIR, _CAMEL, _USER, _LOOSE_USER, _UUID, _MIXED)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#]*)([^\s?#]*)(\?[^\s#]*)?(#\S*)?", re.I)
_VERSION = re.compile(r"\?(api-)?version=[\w.-]{1,20}", re.I)


def is_secret_name(name: str) -> bool:
    """Return whether an argument has a name that credentials have."""
    return bool(_NAME.search(name))


def is_secret(text: str, name: str = "") -> bool:
    """Return whether a value looks like a credential or holds one, also percent-encoded.

    `name` is the name of the value: a `revision` may have 40 hex digits.
    """
    for form in dict.fromkeys((text, unquote(text), unquote(unquote(text)))):
        if any(pattern.search(form) for pattern in _FORMS):
            return True
        commit = "revision" in name or "commit" in name or "sha" in name
        if any(not (commit and len(digits) in (40, 64)) for digits in _HEX.findall(form)):
            return True
    return False


def address_problem(text: str) -> str:
    """Return why an address in a text must not be published; empty where it may be."""
    for address in _ADDRESS.finditer(text):
        if "@" in unquote(address[2]):
            return "an address with a user in it"
        if address[5] or (address[4] and not _VERSION.fullmatch(address[4])):
            return "an address with a query or a fragment"
    return ""


def place(text: str) -> str:
    """Return a path as it may be published: of a path of this machine only the last part."""
    if "://" in text:
        return words(text)
    parts = text.split("/")
    local = text.startswith(("/", "~", ".")) or ".." in parts or len(parts) > 2
    if len(parts) > 1 and (local or Path(text).exists()):
        return Path(text).name if Path(text).name not in ("", "..") else Path(text).resolve().name
    return Path(text).resolve().name if text in (".", "..") else text


def words(text: str) -> str:
    """Return a text without credentials, and with addresses without user, query and fragment."""
    text = _ADDRESS.sub(_bare, text)
    text = _PAIR.sub(lambda pair: f"{pair[1]}{HIDDEN}", text)
    for pattern in (_BEGINS, _PEM, _CAMEL, _LOOSE_USER, _UUID, _MIXED):
        text = pattern.sub(HIDDEN, text)
    text = _HEX.sub(lambda digits: digits[0] if len(digits[0]) in (40, 64) else HIDDEN, text)
    return HIDDEN if "%" in text and is_secret(unquote(text)) else text


def _bare(address: re.Match[str]) -> str:
    return f"{address[1]}://{address[2].rpartition('@')[2]}{address[3]}"


def umask() -> int:
    """Return the umask for new files: they are the user's alone, or a group may read them."""
    return 0o027 if os.environ.get(GROUP) else 0o077


def share(group: str) -> None:
    """Let a Unix group, by name or number, read new files of this process and its children.
    EvalkitError where the user is not in the group."""
    import grp

    try:
        number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise EvalkitError(f"there is no group '{group}'", fix="`id` lists yours") from None
    if number not in (os.getgid(), *os.getgroups()) and os.getuid() != 0:
        raise EvalkitError(f"you are not in the group '{group}'", fix="`id` lists yours")
    os.environ[GROUP] = str(number)
    os.umask(umask())

"""Makes one HTML file that needs no other file and may fetch nothing.

Style and script are in the page and allowed by their digests; the page's own policy forbids every
request. Jinja escapes every text of a record. Escaping leaves control and direction characters
alone, so they are spelled out: a model's output can't reorder or hide the text around it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"
# C0 but tab and line feed, DEL and C1, soft hyphen, zero width, direction marks and overrides, line
# separators, surrogates, the byte order mark, tags.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
LONGEST = 2_000  # characters of one value of a record


def visible(value: object) -> Markup:
    """Return a value as HTML whose hidden characters are spelled out as U+XXXX."""
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text) - LONGEST:,} more characters)"
    parts, start = [], 0
    for match in HIDDEN.finditer(text):
        parts.append(escape(text[start : match.start()]))
        parts.append(Markup('<span class="hidden">U+{:04X}</span>').format(ord(match[0])))
        start = match.end()
    return Markup("").join([*parts, escape(text[start:])])


def known(value: Any) -> Markup:
    """Return a value of a record as HTML; it may be unknown for a reason."""
    if isinstance(value, dict) and set(value) == {"unknown"}:
        return Markup('<span class="unknown">unknown: {}</span>').format(visible(value["unknown"]))
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if value is None:
        return Markup('<span class="unknown">none</span>')
    if isinstance(value, (dict, list)):
        return visible(json.dumps(value, ensure_ascii=False, sort_keys=True))
    return visible(f"{value:,}" if isinstance(value, int) else value)


def safe_url(text: str) -> str:
    """Return an address that a link may have: http or https, else none."""
    return text if re.match(r"https?://[^\s\"'<>]+$", text) else ""


def percent(value: float) -> str:
    """Return a share in per cent with one decimal."""
    return f"{100 * value:.1f}"


def moment(text: str) -> Markup:
    """Return a record's time to the minute, UTC."""
    when = datetime.fromisoformat(text)
    shown = f"{when:%Y-%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(text, shown)


def seconds(value: float) -> str:
    """Return a duration for people: 4.1 s, 12 min 5 s, 3 h 20 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(value: float) -> str:
    """Return a number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def data(value: Any) -> Markup:
    """Return a value as JSON for a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {"visible": visible, "known": known, "percent": percent, "moment": moment,
               "seconds": seconds, "safe_url": safe_url, "size": size, "data": data}  # fmt: skip
    environment.filters |= filters
    return environment


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(template: str, scripts: Sequence[str], context: Mapping[str, object]) -> str:
    """Return a page from its template, with the scripts of these files in one element."""
    style = (TEMPLATES / "report.css").read_text("utf-8")
    code = "\n".join((TEMPLATES / script).read_text("utf-8") for script in scripts)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; img-src data:; "
        f"script-src {_digest(code) if code else repr('none')}; base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(
        style=Markup(style), code=Markup(code), policy=policy, **context
    )  # our own files, no record's

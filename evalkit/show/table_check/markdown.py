"""Reads the tables of a Markdown file with markdown-it-py's parser, in GitHub's form. HTML in a
cell counts only where it sets text lower or higher; formulas between dollars are TeX.

The records of a table are named in comments for evalkit before it, or in the lines that `evalkit
export --to markdown` writes below it, one for each model.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt

from evalkit.show.table_check import latex
from evalkit.show.table_check.table import IDS, Cell, Row, Table, build, named

_FORMULA = re.compile(r"(?<!\\)\$([^$]+)\$")
_TAGS = {"<sub>": " _(", "</sub>": ")", "<small>": " _(", "</small>": ")", "<sup>": "^(",
         "</sup>": ")", "<br>": " ", "<br/>": " ", "<br />": " "}  # fmt: skip
_RULE = re.compile(r"^\s*\|[\s:|-]*-[\s:|-]*\|\s*$", re.M)
_EXPORTED = re.compile(r"run `sha256:[0-9a-f]{64}`")


@dataclass(slots=True)
class _Reading:
    """The tables so far, the rows of the current one, and the ids that wait for the next one."""

    tables: list[Table] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    num_heads: int = 0
    line: int = 0


def tables(text: str) -> list[Table]:
    """Return every table of a Markdown file."""
    reading = _Reading()
    _read(text, reading, 0)
    return reading.tables


def _read(text: str, reading: _Reading, above: int) -> None:
    """Read Markdown that starts after `above` lines of the file."""
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.map:
            token.map = [token.map[0] + above, token.map[1] + above]
        if token.type == "fence" and token.map:
            _read_fence(token, reading)
        else:
            _take(token, reading)


def _read_fence(token: Any, reading: _Reading) -> None:
    """Read a fence: it may hold a table as lm-eval prints it, or one in LaTeX."""
    if "\\begin{" in token.content:
        reading.tables += latex.tables("\n" * (token.map[0] + 1) + token.content)
    elif _RULE.search(token.content):
        _read(token.content, reading, token.map[0] + 1)


def _take(token: Any, reading: _Reading) -> None:
    line = token.map[0] + 1 if token.map else reading.line
    if token.type == "table_open":
        reading.rows, reading.num_heads, reading.line = [], 0, line
    elif token.type == "tr_open":
        reading.rows.append(Row(line, []))
    elif token.type == "thead_close":
        reading.num_heads = len(reading.rows)
    elif token.type == "table_close":
        reading.tables.append(build(reading.line, reading.rows, reading.num_heads, reading.waiting))
        reading.waiting, reading.rows = [], []
    elif token.type == "inline" and reading.rows:
        row = reading.rows[-1]
        row.cells.append(Cell(row.line, len(row.cells) + 1, plain(token.children or [])))
        row.ids += tuple(i for c in token.children or [] for i in _of_comments(c.content))
    elif token.type == "html_block":
        reading.waiting += _of_comments(token.content)
    elif token.type == "inline":
        _name(token, reading)


def _name(token: Any, reading: _Reading) -> None:
    """Note ids in text: a comment is about the next table, an exported line about the one above."""
    if _EXPORTED.search(token.content) and reading.tables:
        reading.tables[-1].shared += tuple(dict.fromkeys(IDS.findall(token.content)))
    for child in token.children or []:
        if child.type == "html_inline":
            reading.waiting += _of_comments(child.content)


def _of_comments(html: str) -> list[str]:
    found, end = [], 0
    while (start := html.find("<!--", end)) >= 0 and (end := html.find("-->", start + 4)) >= 0:
        found += named(html[start + 4 : end])
    return found


def plain(children: list[Any]) -> str:
    """Return a cell's inline tokens as plain text."""
    text = ""
    for token in children:
        if token.type in ("text", "code_inline", "image"):
            text += token.content
        elif token.type in ("softbreak", "hardbreak"):
            text += " "
        elif token.type == "html_inline":
            text += _TAGS.get(token.content.lower(), "")
    shown = _FORMULA.sub(lambda formula: latex.plain(formula[0]), text)
    return " ".join(shown.replace("\u2212", "-").split())

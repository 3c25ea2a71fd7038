"""Tables of a Markdown file, by markdown-it-py's parser, with GitHub's tables. HTML in a cell is
read for what is set lower or higher, and otherwise left out; formulas between dollars are TeX.

A table's records are named by evalkit's comments before it or by the lines that `evalkit export
--to markdown` writes below it, one a model.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from markdown_it import MarkdownIt

from evalkit.show.table_check import latex
from evalkit.show.table_check.table import IDS, Cell, Row, Table, build, named

_FORMULA = re.compile(r"(?<!\\)\$([^$]+)\$")
_COMMENT = re.compile(r"<!--(.*?)-->", re.S)
_TAGS = {"<sub>": " _(", "</sub>": ")", "<small>": " _(", "</small>": ")", "<sup>": "^(",
         "</sup>": ")", "<br>": " ", "<br/>": " ", "<br />": " "}  # fmt: skip
_RULE = re.compile(r"^\s*\|[\s:|-]*-[\s:|-]*\|\s*$", re.M)
_EXPORTED = re.compile(r"run `sha256:[0-9a-f]{64}`")


@dataclass(slots=True)
class _Reading:
    """The tables so far, the one that is being read, and ids that wait for the next one."""

    found: list[Table] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    num_heads: int = 0
    line: int = 0


def tables(text: str) -> list[Table]:
    """Every table in a Markdown file."""
    reading = _Reading()
    _read(text, reading, 0)
    return reading.found


def _read(text: str, reading: _Reading, above: int) -> None:
    """Take in Markdown that starts behind `above` lines of the file."""
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.map:
            token.map = [token.map[0] + above, token.map[1] + above]
        if token.type == "fence" and token.map:
            _read_fence(token, reading)
        else:
            _take(token, reading)


def _read_fence(token: Any, reading: _Reading) -> None:
    """A fence may hold a table as lm-eval prints it, or one in LaTeX."""
    if "\\begin{" in token.content:
        found = latex.tables("\n" * (token.map[0] + 1) + token.content)
        reading.found += found
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
        reading.found.append(build(reading.line, reading.rows, reading.num_heads, reading.waiting))
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
    """Ids in text: a comment is about the next table, an exported line about the one above."""
    if _EXPORTED.search(token.content) and reading.found:
        reading.found[-1].shared += tuple(dict.fromkeys(IDS.findall(token.content)))
    for child in token.children or []:
        if child.type == "html_inline":
            reading.waiting += _of_comments(child.content)


def _of_comments(html: str) -> list[str]:
    return [each for comment in _COMMENT.findall(html) for each in named(comment)]


def plain(children: list[Any]) -> str:
    """A cell's inline tokens as plain text."""
    found = ""
    for token in children:
        if token.type in ("text", "code_inline"):
            found += token.content
        elif token.type in ("softbreak", "hardbreak"):
            found += " "
        elif token.type == "html_inline":
            found += _TAGS.get(token.content.lower(), "")
        elif token.type == "image":
            found += token.content
    shown = _FORMULA.sub(lambda formula: latex.plain(formula[0]), found)
    return " ".join(shown.replace("\u2212", "-").split())

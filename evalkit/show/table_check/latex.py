"""Reads the tables of a LaTeX file with pylatexenc's parser. TeX is never run: no macro is
expanded, no file is included; an unknown macro counts as the content of its braces.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pylatexenc import latexwalker
from pylatexenc.macrospec import EnvironmentSpec, MacroSpec

from evalkit.show.table_check.table import Cell, Row, Table, build, named

TABULARS = {
    "tabular": "[{", "tabular*": "{[{", "tabularx": "{[{", "tabulary": "{[{", "longtable": "[{",
    "tblr": "[{", "supertabular": "[{", "xltabular": "{[{", "NiceTabular": "[{[", "array": "[{",
}  # fmt: skip
RULES = {"toprule", "midrule", "bottomrule", "hline", "cline", "cmidrule", "specialrule", "Xhline",
         "hhline", "cdashline", "hdashline", "cmidrulekern", "noalign", "heavyrule"}  # fmt: skip
ARGUMENTS = {
    "multicolumn": "{{{", "multirow": "[{[{[{", "multirowcell": "[{[{", "makebox": "[[{",
    "framebox": "[[{", "cellcolor": "[{", "rowcolor": "*[{[[", "columncolor": "[{", "colorbox":
    "{{", "fcolorbox": "{{{", "color": "[{", "textcolor": "[{{", "resizebox": "*{{{", "scalebox":
    "{[{", "rotatebox": "[{{", "adjustbox": "{{", "raisebox": "{[[{", "parbox": "[[[{{",
    "makecell": "*[{", "thead": "*[{", "shortstack": "[{", "num": "[{", "tablenum": "[{", "SI":
    "[{[{", "qty": "[{{", "hspace": "*{", "vspace": "*{", "rule": "[{{", "cline": "{", "Xhline":
    "{", "hhline": "{", "specialrule": "{{{", "addlinespace": "[", "cdashline": "{", "noalign":
    "{", "definecolor": "{{{", "hypersetup": "{", "setlength": "{{", "renewcommand": "*{[[{",
    "footnotemark": "[", "tnote": "{", "tablefootnote": "{", "overset": "{{", "underset": "{{",
    "stackrel": "{{", "frac": "{{", "phantom": "{", "hphantom": "{", "vphantom": "{", "smash": "[{",
    "midrule": "[", "toprule": "[", "bottomrule": "[", "cmidrule": "[", "textsubscript": "{",
    "textsuperscript": "{", "citep": "*[[{", "citet": "*[[{", "cite": "*[[{", "citealp": "*[[{",
    "citeyearpar": "[[{", "label": "{", "ref": "{", "cref": "{", "gradient": "{",
}  # fmt: skip
CONTENT = {"multicolumn": 2, "multirow": 5, "multirowcell": 3, "makebox": 2, "framebox": 2,
           "colorbox": 1, "fcolorbox": 2, "textcolor": 2, "resizebox": 3, "scalebox": 2,
           "rotatebox": 2, "adjustbox": 1, "raisebox": 3, "parbox": 4, "makecell": 2, "thead": 2,
           "shortstack": 1, "num": 1, "tablenum": 1, "SI": 1, "qty": 1, "smash": 1}  # fmt: skip
NOTHING = {"cellcolor", "rowcolor", "columncolor", "color", "hspace", "vspace", "rule", "phantom",
           "hphantom", "vphantom", "cite", "citep", "citet", "citealp", "citeyearpar", "label",
           "ref", "cref", "footnote", "footnotemark", "tnote", "tablefootnote", "addlinespace",
           "definecolor", "hypersetup", "setlength", "renewcommand", "footnotetext",
           "arraystretch", "tabcolsep", "centering", "raggedright", "raggedleft"}  # fmt: skip
SMALL = {"tiny", "scriptsize", "footnotesize", "small"}
_SMALLER = "\0"
RAISED = {"textsuperscript", "sp"}
SIGNS = {"pm": "±", "mp": "±", "textpm": "±", "uparrow": "↑", "downarrow": "↓", "Uparrow": "↑",
         "Downarrow": "↓", "blacktriangle": "↑", "blacktriangledown": "↓", "triangle": "↑",
         "triangledown": "↓", "nearrow": "↑", "searrow": "↓", "times": "\u00d7", "cdot": "·",
         "%": "%",
         "&": "&", "_": "_", "#": "#", "$": "$", "{": "{", "}": "}", ",": " ", ";": " ", ":": " ",
         "!": "", " ": " ", "quad": " ", "qquad": " ", "newline": " ", "dagger": "†", "dag": "†",
         "ddagger": "‡", "ddag": "‡", "ast": "*", "star": "*", "bullet": "*", "textbackslash": "\\",
         "textminus": "-", "textendash": "\u2013", "approx": "≈", "sim": "~", "textasciitilde": "~",
         "leq": "≤", "geq": "≥", "le": "≤", "ge": "≥", "Delta": "Δ", "textemdash": "—"}  # fmt: skip
_SPECIALS = {"~": " ", "--": "\u2013", "---": "—"}
_SHIFTS = {"_": "_(", "^": "^("}


def tables(text: str) -> list[Table]:
    """Return every table of a TeX file, without those in comments."""
    walker = latexwalker.LatexWalker(text, latex_context=_context(), tolerant_parsing=True)
    nodes, _, _ = walker.get_latex_nodes()
    lines = _Lines(text)
    return [_table(node, around, lines) for node, around in _tabulars(nodes, ())]


def plain(text: str) -> str:
    """Return a piece of TeX as a cell's plain text."""
    walker = latexwalker.LatexWalker(text, latex_context=_context(), tolerant_parsing=True)
    nodes, _, _ = walker.get_latex_nodes()
    return _squeezed(_text(nodes))


@cache
def _context() -> Any:
    context = latexwalker.get_default_latex_context_db()
    context.add_context_category(
        "evalkit",
        prepend=True,
        macros=[MacroSpec(name, args) for name, args in ARGUMENTS.items()],
        environments=[EnvironmentSpec(name, args) for name, args in TABULARS.items()],
    )
    return context


class _Lines:
    """Line numbers by position."""

    def __init__(self, text: str) -> None:
        self._ends = [index for index, char in enumerate(text) if char == "\n"]

    def at(self, position: int) -> int:
        return bisect_left(self._ends, position) + 1


def _is(node: Any, kind: str) -> bool:
    return node is not None and type(node).__name__ == f"Latex{kind}Node"


def _children(node: Any) -> list[Any]:
    arguments = getattr(node, "nodeargd", None)
    nodes = [*(getattr(node, "nodelist", None) or [])]
    nodes += getattr(arguments, "argnlist", None) or []
    return [child for child in nodes if child is not None]


def _tabulars(nodes: Sequence[Any], around: tuple[str, ...]) -> Iterator[tuple[Any, list[str]]]:
    """Yield each tabular with the ids for the whole of it, from comments on lines of their own."""
    for node in nodes:
        if _is(node, "Environment") and node.environmentname in TABULARS:
            yield node, [*around, *_own_comments(node.nodelist)]
        elif _is(node, "Environment") and node.environmentname.startswith(("table", "wraptable")):
            yield from _tabulars(node.nodelist, tuple(_own_comments(_children(node))))
        else:
            yield from _tabulars(_children(node), around)


def _own_comments(nodes: Sequence[Any]) -> list[str]:
    ids: list[str] = []
    is_own_line = True
    for node in nodes:
        if _is(node, "Comment"):
            ids += named(node.comment) if is_own_line else []
            is_own_line = True  # a comment ends its line
        elif _is(node, "Chars"):
            is_own_line = _ends_blank(node.chars, is_own_line)
        else:
            if _is(node, "Environment") and node.environmentname not in TABULARS:
                ids += _own_comments(node.nodelist)
            is_own_line = False
    return ids


def _ends_blank(chars: str, is_own_line: bool) -> bool:
    """Return whether a comment behind the text has a line of its own. `is_own_line`: whether the
    line was blank before the text."""
    _, newline, tail = chars.rpartition("\n")
    return not tail.strip() and (bool(newline) or is_own_line)


@dataclass
class _Reading:
    """The state while a tabular is read: its rows so far, and the cells of the next row."""

    lines: _Lines
    rows: list[Row] = field(default_factory=list)
    num_heads: int | None = None
    cells: list[tuple[int, list[Any]]] = field(default_factory=lambda: [(0, [])])
    is_own_line: bool = True

    def end_row(self) -> None:
        made, column = [], 1
        for position, nodes in self.cells:
            span = _span(nodes)
            made.append(Cell(self.lines.at(position), column, _squeezed(_text(nodes)), span))
            column += span
        self.cells = [(0, [])]
        if any(cell.text for cell in made):
            first = next(cell.line for cell in made if cell.text)
            self.rows.append(Row(first, made))


def _table(node: Any, shared: list[str], lines: _Lines) -> Table:
    """Read a tabular: `&` ends a cell, `\\\\` a row; the first rule after a row ends the head."""
    reading = _Reading(lines)
    for child in node.nodelist:
        _take(child, reading)
    reading.end_row()
    heads = reading.num_heads
    if heads is None:
        heads = _plain_heads(reading.rows)
    return build(lines.at(node.pos), reading.rows, heads, shared)


def _take(node: Any, reading: _Reading) -> None:
    if _is(node, "Specials") and node.specials_chars == "&":
        reading.cells.append((node.pos + 1, []))
    elif _is(node, "Macro") and node.macroname in ("\\", "tabularnewline", "cr"):
        reading.end_row()
        reading.is_own_line = False
    elif _is(node, "Comment"):
        ids = named(node.comment)
        if ids and not reading.is_own_line and reading.rows:
            reading.rows[-1].ids = tuple(ids)
        reading.is_own_line = True
    elif _is(node, "Macro") and node.macroname in RULES:
        if reading.rows and reading.num_heads is None and node.macroname in ("midrule", "hline"):
            reading.num_heads = len(reading.rows)
        reading.is_own_line = False
    else:
        position, nodes = reading.cells[-1]
        if _is(node, "Chars"):
            reading.is_own_line = _ends_blank(node.chars, reading.is_own_line)
        else:
            reading.is_own_line = False
        starts = position or (0 if _is(node, "Chars") and not node.chars.strip() else node.pos)
        if _is(node, "Chars") and not position and node.chars.strip():
            starts = node.pos + len(node.chars) - len(node.chars.lstrip())
        reading.cells[-1] = (starts, [*nodes, node])


def _plain_heads(rows: list[Row]) -> int:
    """Return the number of rows before the first with a number, for a table without rules."""
    for index, row in enumerate(rows):
        if any(cell.text[:1].isdigit() for cell in row.cells[1:]):
            return index
    return len(rows)


def _span(nodes: Sequence[Any]) -> int:
    for node in nodes:
        if _is(node, "Macro") and node.macroname == "multicolumn":
            arguments = getattr(node.nodeargd, "argnlist", None) or [None]
            count = _squeezed(_text(arguments[:1]))
            return min(int(count[:4]) or 1, 100) if count.isdecimal() else 1
    return 1


def _squeezed(text: str) -> str:
    return " ".join(text.replace("\u2212", "-").split())


def _text(nodes: Sequence[Any]) -> str:
    """Return the nodes' text, with marks for what is smaller, lower or higher."""
    parts: list[str] = []
    shift, num_small = "", 0
    for part, is_char in _parts(nodes):
        if is_char and part in _SHIFTS:
            shift = _SHIFTS[part]
        elif part == _SMALLER:
            parts.append(" _(")  # until the group's end
            num_small += 1
        elif shift and part.strip():
            parts.append(f"{shift}{part})")
            shift = ""
        else:
            parts.append(part)
    return "".join(parts) + ")" * num_small


def _parts(nodes: Sequence[Any]) -> Iterator[tuple[str, bool]]:
    """Yield each node's text, plain characters one by one, and whether it is such a character."""
    before = None
    for node in nodes:
        if _is(node, "Chars"):
            yield from ((char, True) for char in node.chars.replace("~", " "))
        elif _is(node, "Macro") and node.macroname in SMALL:
            yield _SMALLER, False
        elif node is not None:
            if _is(node, "Group") and _is(before, "Group"):
                yield " ", False  # an unknown macro's arguments
            yield _shown(node), False
        before = node


def _shown(node: Any) -> str:
    if _is(node, "Comment"):
        return ""
    if _is(node, "Specials"):
        return str(_SPECIALS.get(node.specials_chars, node.specials_chars))
    if not _is(node, "Macro"):
        return _text(getattr(node, "nodelist", None) or [])
    name, arguments = node.macroname, getattr(node.nodeargd, "argnlist", None) or []
    if name in SIGNS:
        return SIGNS[name]
    if name in NOTHING or name in RULES:
        return ""
    content = _text(arguments[CONTENT[name] :][:1]) if name in CONTENT else _text(arguments)
    if name == "textsubscript":
        return f" _({content})"
    return f"^({content})" if name in RAISED else content

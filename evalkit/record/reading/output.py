"""How a record's strings go out: one function for each kind of output.

They are somebody else's words. In a spreadsheet they must not compute, in Markdown not link or
embed, in LaTeX not run. Terminals have `errors.printable`, HTML the report's templates.
"""

import re
import unicodedata

from evalkit.base.errors import printable

_FORMULA = "=+-@"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_LINK = re.compile(r"(?<=\w)://|\bwww\.|(?<=\S)@(?=\S)", re.I)  # what becomes a link by itself


def csv_cell(text: str) -> str:
    """A text as a cell: on one line, and no formula, also not behind blanks or in wide letters."""
    plain = printable(text)
    first = unicodedata.normalize("NFKC", plain).lstrip()[:1]
    return "'" + plain if first and first in _FORMULA else plain


def markdown(text: object, special: str = "\\`*[]<>") -> str:
    """A text in Markdown, on one line: no link, image, HTML or emphasis; `special` are escaped.
    Underscores within words stay as they are, so that it reads in a terminal too."""
    plain = "".join("\\" + c if c in special else c for c in printable(text))
    return _LINK.sub(lambda found: found[0][:-1] + "\\" + found[0][-1], plain)


def latex(text: str) -> str:
    """A text in LaTeX, on one line, without a command or a comment."""
    return "".join(_LATEX.get(c, c) for c in printable(text))

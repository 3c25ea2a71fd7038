"""Which fields of a document a task reads, and what they look like, from its templates and code.

A field that is indexed or iterated over is a list, one with names below it is a dictionary, an
index is a number, one that is compared with a word or looked up among words is the first of them.
Of the rest nothing is known.
"""

import ast
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

ITEM = 0  # in a path, any place of a list
Path_ = tuple[str | int, ...]


@dataclass
class Shape:
    """What is known of a field: the fields below it, whether it is a list, what it must be."""

    below: dict[str | int, "Shape"] = field(default_factory=dict)
    only: Any = None

    def at(self, path: Path_) -> "Shape":
        """The shape at a path below this one."""
        here = self
        for name in path:
            here = here.below.setdefault(name, Shape())
        return here

    def value(self, text: Any, row: int) -> Any:
        """A value of this shape. Where nothing is known: `text`, or the row's number for None."""
        names = {name: shape for name, shape in self.below.items() if isinstance(name, str)}
        if names:
            return {name: shape.value(text, row) for name, shape in sorted(names.items())}
        if self.below:
            return [self.below[ITEM].value(text, place) for place in range(5)]
        if self.only is not None:
            return self.only
        return str(row + 1) if text is None else text


def of_function(function: Any, found: Shape) -> None:
    """Add what a function of a task's module reads, with the functions there that it calls."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is not None:
        for tree in _called(code.co_filename, code.co_name):
            Reader(found, _firsts(code.co_filename)).visit(tree)


def of_module(file: str, found: Shape) -> None:
    """Add what any function of a module reads."""
    Reader(found, _firsts(file)).visit(_parsed(file))


@cache
def _parsed(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text("utf-8"))


@cache
def _firsts(file: str) -> dict[str, Any]:
    """The first key or item of each list and dictionary of words that a file gives a name."""
    firsts: dict[str, Any] = {}
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            items = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
            if items and isinstance(items[0], ast.Constant):
                firsts[node.targets[0].id] = items[0].value
    return firsts


def _called(file: str, name: str) -> list[ast.AST]:
    """A function of a file and those of the same file that it names."""
    known = {n.name: n for n in ast.walk(_parsed(file)) if isinstance(n, ast.FunctionDef)}
    queue, seen = [name], dict[str, ast.AST]()
    while queue:
        if (each := queue.pop()) in known and each not in seen:
            seen[each] = known[each]
            queue += [n.id for n in ast.walk(known[each]) if isinstance(n, ast.Name)]
    return list(seen.values()) or [_parsed(file)]


class Reader(ast.NodeVisitor):
    """Notes `doc["a"]["b"]`, `doc.get("a")`, `for x in doc["a"]` and comparisons with a word."""

    def __init__(self, found: Shape, firsts: dict[str, Any]) -> None:
        self._found, self._firsts = found, firsts
        self._names, self._words = dict[str, Path_](), dict[str, list[str]]()

    def path(self, node: ast.AST) -> Path_ | None:
        """The path of fields that an expression reads; None for another expression."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, ())
        if isinstance(node, ast.Subscript):
            base, key = self.path(node.value), node.slice
            if base and isinstance(key, ast.Name) and key.id in self._words:
                for word in self._words[key.id]:
                    self._found.at((*base, word))
                return (*base, self._words[key.id][0])
            if base is None or (not base and not _is_word(key)):
                return None
            return (*base, key.value if _is_word(key) else ITEM)  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            base = self.path(node.func.value)
            key = node.args[0] if node.func.attr == "get" and node.args else node
            if base is not None and _is_word(key):
                return (*base, key.value)  # type: ignore[attr-defined]
        return None

    def _note(self, node: ast.AST) -> Path_ | None:
        path = self.path(node)
        if path:
            self._found.at(path)
        return path

    def _loop(self, target: ast.AST, source: ast.AST) -> None:
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.args:
            if source.func.id == "enumerate" and isinstance(target, ast.Tuple):
                self._loop(target.elts[-1], source.args[0])
            elif source.func.id == "zip" and isinstance(target, ast.Tuple):
                for each, item in zip(target.elts, source.args, strict=False):
                    self._loop(each, item)
        elif isinstance(target, ast.Name) and isinstance(source, ast.List):
            if source.elts and all(map(_is_word, source.elts)):
                self._words[target.id] = [each.value for each in source.elts]  # type: ignore[attr-defined]
        elif (path := self.path(source)) and isinstance(target, ast.Name):
            self._found.at((*path, ITEM))
            self._names[target.id] = (*path, ITEM)

    def _among(self, words: ast.AST, node: ast.AST) -> None:
        """A field is looked up among words: it is the first of them."""
        first = self._firsts.get(words.id) if isinstance(words, ast.Name) else None
        if isinstance(words, ast.List) and words.elts and isinstance(words.elts[0], ast.Constant):
            first = words.elts[0].value
        if first is not None and (path := self._note(node)):
            self._found.at(path).only = first

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._note(node)
        self._among(node.value, node.slice)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._note(node)
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr == "index" and node.args:
            self._among(function.value, node.args[0])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Sub) and (path := self._note(node.left)):
            self._found.at(path).only = 1
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Name) and (path := self.path(node.value)):
            self._names[node.targets[0].id] = path
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.target, node.iter)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        path, other = self._note(node.left), node.comparators[0]
        if path and isinstance(node.ops[0], ast.Eq) and isinstance(other, ast.Constant):
            self._found.at(path).only = other.value
        if isinstance(other, ast.Call) and isinstance(other.func, ast.Attribute):
            other = other.func.value  # `in doc["a"].keys()`
        if _is_word(node.left) and isinstance(node.ops[0], ast.In) and (path := self.path(other)):
            self._found.at((*path, node.left.value))  # type: ignore[attr-defined]
        self.generic_visit(node)


def _is_word(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


_JINJA = Environment()


def of_template(text: str, found: Shape) -> None:
    """Add what a Jinja template reads."""
    try:
        tree = _JINJA.parse(text)
    except TemplateSyntaxError:  # lm-eval says what is wrong with it
        return
    _walk(tree, {}, found)


def _walk(node: nodes.Node, names: dict[str, Path_ | None], found: Shape) -> None:
    if isinstance(node, nodes.For):
        path = _jinja_path(node.iter, names)
        _walk(node.iter, names, found)
        inner = {**names, "loop": None}
        for target in node.target.find_all(nodes.Name) if not isinstance(
            node.target, nodes.Name) else [node.target]:  # fmt: skip
            inner[target.name] = (*path, ITEM) if path else None
        if path:
            found.at((*path, ITEM))
        for child in [*node.body, *node.else_]:
            _walk(child, inner, found)
        return
    if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
        _walk(node.node, names, found)
        names[node.target.name] = _jinja_path(node.node, names)
        return
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        if path := _jinja_path(node.node.node, names):
            found.at(path)
        literal, method = node.node.node, node.node.attr
        if method == "index" and isinstance(literal, nodes.List) and node.args:
            _only(node.args[0], literal.items[0], names, found)
        for child in [node.node.node, *node.args]:
            _walk(child, names, found)
        return
    if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Const):
        if path := _jinja_path(node.arg, names):
            found.at(path).only = 0
        if isinstance(node.node, nodes.Dict) and node.node.items:
            _only(node.arg, node.node.items[0].key, names, found)
    if isinstance(node, nodes.Sub) and (path := _jinja_path(node.left, names)):
        found.at(path).only = 1
    if isinstance(node, nodes.Filter) and node.name in ("join", "first", "last", "list"):
        path = _jinja_path(node.node, names) if node.node is not None else None
        found.at((*path, ITEM) if path else ())
    if path := _jinja_path(node, names):
        found.at(path)
    for child in node.iter_child_nodes():
        _walk(child, names, found)


def _only(node: nodes.Node, literal: nodes.Node, names: Any, found: Shape) -> None:
    """A field is looked up among literals: it is the first of them."""
    if (path := _jinja_path(node, names)) and isinstance(literal, nodes.Const):
        found.at(path).only = literal.value


def _jinja_path(node: nodes.Node, names: dict[str, Path_ | None]) -> Path_ | None:
    if isinstance(node, nodes.Name):
        return names.get(node.name, (node.name,))
    if isinstance(node, nodes.Getattr):
        base = _jinja_path(node.node, names)
        return None if base is None else (*base, node.attr)
    if isinstance(node, nodes.Getitem):
        base = _jinja_path(node.node, names)
        key = node.arg.value if isinstance(node.arg, nodes.Const) else ITEM
        return None if base is None else (*base, key if isinstance(key, str) else ITEM)
    return None

"""What computes in a Python file: its code without comments, docstrings and blank lines."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from ferd.errors import FerdError


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        FerdError: the file is not Python.
    """
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise FerdError(f"{path}:{error.lineno}: {error.msg}; correct it, then run again") from None


def bare(path: Path) -> str:
    """The code of a file; the same under every version of Python.

    Raises:
        FerdError: the file is not Python.
    """
    tree, source = parsed(path), path.read_text(encoding="utf-8")
    docstrings, strings = set(_docstring_lines(tree)), set(_lines_within_strings(tree))
    lines = io.StringIO(source).readlines()
    for row, column in _comments(source):
        lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    return "".join(
        line
        for row, line in enumerate(lines, start=1)
        if row not in docstrings and (line.strip() or row in strings)
    )


def _comments(source: str) -> Iterator[tuple[int, int]]:
    """Row and column where each begins."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return (token.start for token in tokens if token.type == tokenize.COMMENT)


def _lines_within_strings(tree: ast.Module) -> Iterator[int]:
    """Where a blank line is part of a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield from range(node.lineno + 1, (node.end_lineno or 0) + 1)


def _docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Of docstrings that have their lines to themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as text, *rest]:
                    last = text.end_lineno or text.lineno
                    follows = isinstance(node, ast.Module) or node.lineno < text.lineno
                    if follows and (not rest or last < rest[0].lineno):
                        yield from range(text.lineno, last + 1)

"""What computes in a Python file: its code without comments, docstrings and blank lines."""

import ast
import io
import threading
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from ferd.errors import FerdError

PARSER = threading.Lock()  # up to Python 3.11.7 two threads' syntax trees disturb each other (gh-106905)


def parsed(path: Path) -> tuple[str, ast.Module]:
    """The text of a file and its syntax tree.

    Raises:
        FerdError: the file is not Python.
    """
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with PARSER:
            return source, ast.parse(source)
    except SyntaxError as error:
        raise FerdError(f"{path}:{error.lineno}: {error.msg}; correct it, then run again") from None
    except (OSError, ValueError) as error:
        raise FerdError(f"{path}: cannot be read: {error}; correct it, then run again") from None


def bare(path: Path) -> str:
    """The code of a file; the same under every version of Python.

    Raises:
        FerdError: the file is not Python.
    """
    source, tree = parsed(path)
    lines = io.StringIO(source).readlines()
    docstrings = set(_docstring_lines(tree, lines))
    kept = {row + 1 for row, line in enumerate(lines, start=1) if line.endswith("\\\n")}
    kept |= set(_lines_within_strings(tree))
    for row, column in _comments(source):
        lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    return "".join(
        line
        for row, line in enumerate(lines, start=1)
        if row not in docstrings and (line.strip() or row in kept)
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


def _docstring_lines(tree: ast.Module, lines: Sequence[str]) -> Iterator[int]:
    """Of docstrings that have their lines to themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())) as text, *rest]:
                    last = text.end_lineno or text.lineno
                    begins = not lines[text.lineno - 1].encode()[: text.col_offset].strip()
                    if begins and (not rest or last < rest[0].lineno):
                        yield from range(text.lineno, last + 1)

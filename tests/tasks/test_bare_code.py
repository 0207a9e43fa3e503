"""What computes in a file: cut from its text by the tokenizer and the parser."""

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks import bare_code
from tasks.bare_code import bare

SOURCE = '''"""A docstring."""

# a comment
import torch  # another


class Net:
    """Two
    lines."""

    def forward(self, x):
        """Of a method."""
        text = """not a docstring,

        # nor a comment"""
        return torch.relu(x) + len("#") + len(text)
'''
CODE = '''import torch
class Net:
    def forward(self, x):
        text = """not a docstring,

        # nor a comment"""
        return torch.relu(x) + len("#") + len(text)
'''


@pytest.fixture
def code(tmp_path):
    def of(source):
        (tmp_path / "a.py").write_text(source, encoding="utf-8")
        return bare(tmp_path / "a.py")

    return of


def test_code_is_without_comments_docstrings_and_blank_lines(code):
    assert code(SOURCE) == CODE


@pytest.mark.parametrize(
    "source",
    [
        'def f(): """On the line of its function."""\n',
        'def f():\n    """Before a statement."""; return 1\n',
        'f"""{1}\n\n# text {2}"""\n',
        'def f(\n    a=1\n): """A docstring on the line of a default."""\n',
        "x = 1 \\\n\n+ 2\n",
        'x = ("é#"\n     "#")\n',
        'def f():\n    x = 1\n    """An expression, but no docstring."""\n',
    ],
)
def test_what_only_looks_like_one_is_kept(code, source):
    assert code(source) == source


@pytest.mark.parametrize(
    ("old", "new"), [("relu", "gelu"), ("not a", "no"), ("docstring,\n\n", "docstring,\n")]
)
def test_what_computes_changes_the_code(code, old, new):
    assert old in SOURCE
    assert code(SOURCE.replace(old, new)) != CODE


def test_one_thread_at_a_time_makes_a_syntax_tree(monkeypatch):
    """Those of Python up to 3.11.7 end by "AST constructor recursion depth mismatch"."""
    inside, most, parse = [], [], ast.parse

    def slow(source):
        inside.append(source)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return parse(source)

    monkeypatch.setattr(bare_code.ast, "parse", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bare, [Path(__file__)] * 8))
    assert most == [1] * 8

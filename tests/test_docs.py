"""What the documents name is there: modules, the library's names, files that are linked to."""

import ast
import importlib.util
import re

import pytest

from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def programs(text: str) -> list[str]:
    """Python in blocks of its own, and in shell's `python - <<'P'`."""
    return [
        *re.findall(r"^```python\n(.*?)^```", text, re.M | re.S),
        *re.findall(r"^python - <<'P'\n(.*?)^P$", text, re.M | re.S),
    ]


@by_name
def test_programs_are_python_and_what_they_import_is_there(page):
    for program in programs(page.read_text()):
        imports = [
            node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        exec(compile(ast.Module(imports, []), page.name, "exec"), {})


@by_name
def test_modules_that_are_run_are_there(page):
    for name in set(re.findall(r"python -m ((?:tasks|flows|benchmarks|infra)(?:\.\w+)+)", page.read_text())):
        assert importlib.util.find_spec(name), name


@by_name
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_programs_are_found():
    assert programs((ROOT / "README.md").read_text())  # in a block of its own
    assert programs((ROOT / "docs/evidence/speed.md").read_text())  # in shell's

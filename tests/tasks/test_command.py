"""Commands of a person end with one line."""

import pytest

from ferd.errors import FerdError
from tasks.command import as_command


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (FerdError("params.yaml: missing"), 2, "plan: params.yaml: missing\n"),
        (KeyboardInterrupt(), 130, "plan: stopped\n"),
    ],
)
def test_a_fault_or_an_interrupt_is_one_line(capsys, raised, code, line):
    with pytest.raises(SystemExit) as ended, as_command("plan"):
        raise raised
    assert (ended.value.code, capsys.readouterr().err) == (code, line)


def test_a_bug_stays_a_traceback():
    with pytest.raises(ZeroDivisionError), as_command("plan"):
        raise ZeroDivisionError

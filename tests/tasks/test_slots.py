"""Places to compute in: shared by the stages of a folder, given back by every end of a process."""

import subprocess
import sys
import threading

import pytest

from ferd.errors import FerdError
from tasks import paths, slots
from tests.conftest import ROOT, environment

HOLDER = "from tasks import slots; slot = slots.take(range(1)); print('taken', flush=True); input()"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_as_many_slots_are_taken_as_there_are_and_a_closed_one_is_free_again(folder):
    first, second = slots.take(range(2)), slots.take(range(2))
    assert {first.name, second.name} == {str(paths.RESUME / f"slot-{number}") for number in (0, 1)}
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(slots.take(range(2))), daemon=True)
    waiting.start()
    waiting.join(5 * slots.POLL_SECONDS)
    assert waiting.is_alive() and not taken
    second.close()
    waiting.join(10)
    assert [slot.name for slot in taken] == [second.name]
    first.close()
    taken[0].close()


@pytest.mark.parametrize(
    ("number", "own"),
    [(2, [{1}]), (5, [{1}, {1, 3}]), (1, [{0}])],
    ids=["one each", "two of five", "too few"],
)
def test_a_gpu_has_places_of_its_own(folder, monkeypatch, number, own):
    monkeypatch.setenv(slots.SHARE, "1/2")
    taken = []
    for names in own:
        monkeypatch.setenv(slots.SLOTS, str(number))
        taken.append(slots.take(slots.own()))
        assert {slot.name for slot in taken} == {str(paths.RESUME / f"slot-{name}") for name in names}
    for slot in taken:
        slot.close()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (slots.SLOTS, "abc", r"FERD_SLOTS='abc': not what a flow sets, '0' for example; unset it"),
        (slots.SLOTS, "-1", r"FERD_SLOTS='-1': not what a flow sets"),
        (slots.SHARE, "x", r"FERD_SLOT_SHARE='x': not what a flow sets, '0/1' for example; unset it"),
        (slots.SHARE, "3/2", r"FERD_SLOT_SHARE=3/2: there is no such GPU; flows set it, so unset it"),
    ],
)
def test_slots_that_no_flow_sets_are_refused(monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    with pytest.raises(FerdError, match=f"^{said}"):
        slots.own()


@pytest.mark.parametrize("value", ["", "0"])
def test_without_slots_nothing_is_waited_for(monkeypatch, value):
    monkeypatch.setenv(slots.SLOTS, value)
    assert not slots.own()


def test_a_killed_process_gives_its_slot_back(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "taken\n"
        taken = []
        waiting = threading.Thread(target=lambda: taken.append(slots.take(range(1))), daemon=True)
        waiting.start()
        waiting.join(5 * slots.POLL_SECONDS)
        assert not taken
        holder.kill()
        waiting.join(10)
        assert len(taken) == 1
    taken[0].close()


def test_places_may_be_in_the_folder_of_another(folder, monkeypatch):
    """As of a night, whose stages run in a clone."""
    monkeypatch.setenv(slots.FOLDER, str(folder / "others/.resume"))
    with slots.take(range(1)) as slot:
        assert slot.name == str(folder / "others/.resume/slot-0")

"""How hard synthetic images are: every setting, on a size that takes seconds."""

import logging
import sys

import pytest

from benchmarks import difficulty
from ferd.checkpoint import save_classifier
from ferd.models.registry import build


def test_it_prints_a_row_a_setting(tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.ERROR, logger="ferd")  # as the command sets it, put back in the end
    student = tmp_path / "student.safetensors"
    save_classifier(student, build("resnet8-w8", classes=10, channels=3), "resnet8-w8")
    monkeypatch.setattr(difficulty, "IMAGES", 4)
    monkeypatch.setattr(difficulty, "ATTACK_STEPS", 1)
    monkeypatch.setattr(sys, "argv", ["difficulty", str(student), "--steps", "1"])
    difficulty.main()
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(difficulty.WEIGHTS) + 1
    for row in rows:
        _, teacher, _, *losses = row.split(" | ")
        assert teacher.count("%") == 2
        assert all(float(loss) > 0 for loss in losses) and len(losses) == 3


def test_a_checkpoint_that_is_cut_off_is_refused_in_one_line(tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.ERROR, logger="ferd")
    student = tmp_path / "student.safetensors"
    student.write_bytes(b"cut off")
    monkeypatch.setattr(sys, "argv", ["difficulty", str(student)])
    with pytest.raises(SystemExit) as ended:
        difficulty.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"difficulty: {student}: cut off")

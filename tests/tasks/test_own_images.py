"""A benchmark on images of one's own: from files to figures, by the stages as they are run."""

import json
import sys

import yaml

from tasks.dvc_pipeline import Pipeline
from tests.conftest import run_in
from tests.image_sets import make_own

CLASSES = ["red", "green", "blue", "grey"]
CHECKPOINTS = ("teacher", "resnet8-w8/ferd/s0")


def test_a_folder_of_ones_own_goes_from_files_to_figures(workspace, tmp_path):
    make_own(tmp_path / "sets", "mine", CLASSES, {"train": 12, "test": 5}, channels=3)
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    digits = settings["benchmarks"]["digits"]
    own = {"folder": "mine", "classes": CLASSES, "channels": 3, "image_size": 8}
    digits["data"] = {"dataset": own, "train_per_class": 10, "validation_per_class": 2, "test_per_class": 0}
    digits["evaluation"] |= {"attacks": {"clean": "all", "pgd20": 4}, "other_balls": []}
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    for command in (
        ["tasks.data", "digits"],
        ["tasks.teacher", "digits"],
        ["tasks.distill", "digits", "resnet8-w8", "ferd", "s0"],
        *(["tasks.evaluate", f"checkpoints/digits/{name}.safetensors"] for name in CHECKPOINTS),
    ):
        done = run_in(workspace, sys.executable, "-m", *command, FERD_DATA=str(tmp_path / "sets"))
        assert done.returncode == 0, done.stdout + done.stderr
    for name in CHECKPOINTS:
        attacks = json.loads((workspace / f"results/digits/{name}.json").read_text())["attacks"]
        assert (attacks["clean"]["n"], attacks["pgd20"]["n"]) == (20, 4)
        assert [len(figures["per_class"]) for figures in attacks.values()] == [4, 4, 4]


def test_what_the_readme_says_of_dvc_yaml_makes_its_stages(workspace, monkeypatch):
    """The blocks of cifar10-mini once more, in which its name, and then ``mini``, becomes ``mine``."""
    written = workspace / "dvc.yaml"
    text = written.read_text()
    start = text.index("  distill-cifar10-mini:")
    blocks = text[start : text.index("  distill-cifar10-small:")]
    mine = blocks.replace("cifar10-mini", "mine").replace("mini", "mine")
    text = text.replace(blocks, blocks + mine)
    for line in ("      cifar10-mini: *resnets\n", "      - results/cifar10-mini\n"):
        text = text.replace(line, line + line.replace("cifar10-mini", "mine"))
    written.write_text(text)
    settings = yaml.safe_load((workspace / "params.yaml").read_text())
    settings["benchmarks"]["mine"] = settings["benchmarks"]["cifar10-mini"]
    (workspace / "params.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(workspace)
    pipeline = Pipeline()
    assert pipeline.student_stages("mine", ["ferd"], [0]) == ["evaluate-mine@resnet8-w16-ferd-s0"]
    needed = [stage.name for stage in pipeline.plan(["evaluate-mine@resnet8-w16-ferd-s0"])]
    student = "mine@resnet8-w16-ferd-s0"
    assert needed == ["sources", "data@mine", "teacher@mine", f"distill-{student}", f"evaluate-{student}"]

from ferd import paper
from tasks import params
from tests.conftest import ROOT


def test_the_papers_settings_are_those_of_the_pipeline():
    known = params.read(ROOT / "params.yaml")
    benchmark = known.benchmark("cifar10")
    assert benchmark.distillation == paper.SCHEDULE
    assert benchmark.threat_model == paper.THREAT_MODEL
    assert benchmark.augmentation == paper.AUGMENTATION
    assert known.method("ferd") == paper.FERD

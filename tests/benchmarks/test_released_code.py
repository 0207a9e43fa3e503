"""The comparison with the authors' code: its measure, and, where a clone of that code is there, itself."""

import os
import sys

import pytest
import torch

from benchmarks.released_code import BEFORE_RELU, BeforeRelu, apart, difference
from tests.conftest import ROOT, run_in

CLONE = "FERD_RELEASED_CODE"


def test_a_difference_is_a_fraction_of_the_largest_number():
    assert difference(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0])) == pytest.approx(0.1)


def test_functions_that_agree_in_value_alone_are_apart_by_their_gradients():
    at = torch.tensor([2.0, 3.0])
    assert apart(lambda x: x.prod(), lambda x: x.prod(), at) == 0
    assert apart(lambda x: x.prod(), lambda x: x[0].detach() * x[1], at) == pytest.approx(3 / 2)


def test_the_authors_features_have_no_activation_yet():
    network = BeforeRelu(16, 1, classes=10, channels=3).eval()
    inputs = torch.rand(2, 3, 32, 32)
    features = network.features(inputs, BEFORE_RELU)
    assert features.min() < 0 < features.max()
    torch.testing.assert_close(network.head(features, BEFORE_RELU), network(inputs))


def test_another_folder_is_refused(tmp_path):
    ended = run_in(ROOT, sys.executable, "-m", "benchmarks.released_code", "--clone", str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr == (
        f"released_code: {tmp_path}: no clone of https://github.com/mayaobuduyao/FERD; name its folder\n"
    )


@pytest.mark.skipif(CLONE not in os.environ, reason=f"{CLONE} names no clone of the authors' code")
def test_ours_is_theirs():
    ended = run_in(ROOT, sys.executable, "-m", "benchmarks.released_code", "--clone", os.environ[CLONE])
    assert ended.returncode == 0, ended.stderr

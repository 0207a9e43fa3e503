"""The caller's own precision holds again, by whichever of PyTorch's names it was set."""

import subprocess
import sys

import pytest

CHECK = """
import torch
from ferd.tf32 import tf32_convolutions

def facts():
    conv = torch.backends.cudnn.conv.fp32_precision
    try:
        return conv, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # of the older names, where the newer ones were used
        return conv, torch.backends.cuda.matmul.fp32_precision

{setup}
before = facts()
with tf32_convolutions(True):
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    with tf32_convolutions(False):
        assert torch.backends.cudnn.conv.fp32_precision in ("ieee", "none")
        assert torch.backends.cuda.matmul.fp32_precision in ("ieee", "none")
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
assert facts() == before, (facts(), before)
"""


@pytest.mark.parametrize(
    "setup",
    [
        "",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.set_float32_matmul_precision('medium')",
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    ],
)
def test_what_the_caller_had_set_holds_again(setup):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK.format(setup=setup)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

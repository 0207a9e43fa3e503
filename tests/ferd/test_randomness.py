import hashlib

import torch

from ferd.models.registry import build
from ferd.randomness import stream, stream_seed

CPU = torch.device("cpu")


def test_a_seed_is_the_head_of_the_hash_of_its_purpose():
    assert stream_seed(3, "pgd20", 100) == int(hashlib.sha256(b"3/pgd20/100").hexdigest()[:8], 16)
    assert stream_seed(0, "weights") == 0x03B42906


def test_the_same_purpose_gives_the_same_numbers():
    one, other = (torch.rand(5, generator=stream(1, "a", 2, device=CPU)) for _ in range(2))
    assert torch.equal(one, other)


def test_every_purpose_row_and_seed_has_numbers_of_its_own():
    purposes = [(seed, name, row) for seed in (0, 1) for name in ("pgd20", "cw30") for row in (0, 1, 100)]
    drawn = torch.stack([torch.rand(4000, generator=stream(*what, device=CPU)) for what in purposes])
    correlation = torch.corrcoef(drawn) - torch.eye(len(purposes))
    assert correlation.abs().max() < 0.08  # five standard deviations of independent draws


def test_first_weights_and_a_stream_of_the_same_seed_are_unrelated():
    weights = next(build("resnet8-w8", classes=10, channels=1, seed=0).parameters()).detach().flatten()
    torch.manual_seed(0)
    same = torch.empty_like(weights).uniform_()
    for other in (same, torch.rand(len(weights), generator=stream(0, "distillation", device=CPU))):
        assert torch.corrcoef(torch.stack([weights, other]))[0, 1].abs() < 0.6

import pytest
import torch

from ferd.augmentation import augment, augment_strongly
from ferd.config import Augmentation


def marked(batch, row, column):
    """Black images of 9×9 with one white pixel."""
    images = torch.zeros(batch, 1, 9, 9)
    images[:, :, row, column] = 1
    return images


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (2, 1, 5, 7)])
def test_the_shape_stays(shape, rng):
    images = torch.rand(shape, generator=rng)
    assert augment(images, Augmentation(padding=2, flip=True), rng).shape == shape


def test_without_padding_and_flip_nothing_changes(images, rng):
    assert torch.equal(augment(images, Augmentation(padding=0, flip=False), rng), images)


def test_shifts_take_every_value_up_to_the_padding_and_none_beyond(rng):
    moved = augment(marked(1000, 4, 4), Augmentation(padding=2, flip=False), rng)
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = {(row - 4, column - 4) for _, _, row, column in moved.nonzero().tolist()}
    assert places == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_what_comes_in_at_the_border_is_black(rng):
    moved = augment(torch.ones(200, 1, 9, 9), Augmentation(padding=2, flip=False), rng)
    counts = {int(count) for count in moved.sum((1, 2, 3))}
    assert counts == {height * width for height in (7, 8, 9) for width in (7, 8, 9)}


def test_a_flip_mirrors_about_half_of_the_images_and_only_left_to_right(rng):
    moved = augment(marked(1000, 2, 1), Augmentation(padding=0, flip=True), rng)
    places = [(row, column) for _, _, row, column in moved.nonzero().tolist()]
    assert set(places) == {(2, 1), (2, 7)}
    assert 400 < places.count((2, 7)) < 600


def test_no_image_is_mirrored_unless_asked(rng):
    moved = augment(marked(1000, 4, 0), Augmentation(padding=1, flip=False), rng)
    assert max(column for *_, column in moved.nonzero().tolist()) == 1


def test_a_flip_and_a_shift_together_stay_within_the_padding(rng):
    moved = augment(marked(1000, 4, 4), Augmentation(padding=1, flip=True), rng)
    places = {(row - 4, column - 4) for _, _, row, column in moved.nonzero().tolist()}
    assert places == {(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)}


def test_channels_of_an_image_move_together(rng):
    images = torch.rand(20, 1, 9, 9, generator=rng).expand(20, 3, 9, 9)
    moved = augment(images, Augmentation(padding=3, flip=True), rng)
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], moved[:, 2])


def test_equal_seeds_give_equal_images(images):
    settings = Augmentation(padding=2, flip=True)
    sources = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, two, other = (augment(images, settings, source) for source in sources)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_gradients_pass_gradcheck():
    source = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 4, 4, generator=source, dtype=torch.float64, requires_grad=True)
    settings = Augmentation(padding=1, flip=True)

    def always_the_same(x):
        return augment(x, settings, torch.Generator().manual_seed(7))

    assert torch.autograd.gradcheck(always_the_same, images)


def test_strong_augmentation_crops_mirrors_both_ways_and_turns_by_15_degrees(rng):
    """A point off the centre goes to 12 places, 4 mirrorings of 3 turns, each stretched by up to 1/0.95."""
    images = torch.zeros(2000, 1, 101, 101)
    images[:, :, 49:52, 79:82] = 1  # 30 right of the centre
    moved = augment_strongly(images, rng)
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1 + 1e-6
    mass, axis = moved[:, 0], torch.arange(101) - 50.0
    down = (mass.sum(2) * axis).sum(1) / mass.sum((1, 2))
    right = (mass.sum(1) * axis).sum(1) / mass.sum((1, 2))
    radius, degrees = (down**2 + right**2).sqrt(), torch.rad2deg(torch.atan2(down, right))
    assert radius.min() >= 29.9 and radius.max() <= 30 / 0.95 + 0.1
    turned = torch.where(degrees.abs() > 90, 180 - degrees.abs(), degrees.abs())
    straight = turned < 1
    assert ((turned - 15).abs()[~straight] < 1.5).all()
    assert 0.28 < straight.float().mean() < 0.39
    assert 0.45 < (right > 0).float().mean() < 0.55
    assert 0.45 < (down[~straight] > 0).float().mean() < 0.55


def test_strong_augmentation_crops_and_mirrors_either_side_alone(rng):
    images = torch.zeros(600, 1, 101, 101)
    images[:, :, 79:82, 79:82] = 1  # 30 below and 30 right of the centre
    mass, axis = augment_strongly(images, rng)[:, 0], torch.arange(101) - 50.0
    down, right = ((mass.sum(side) * axis).sum(1) / mass.sum((1, 2)) for side in (2, 1))
    straight = (down.abs() - right.abs()).abs() < 5  # a turn leaves 21 and 37
    down, right = down[straight], right[straight]
    for stretched in (down.abs(), right.abs()):
        assert 29.9 <= stretched.min() < 30.3 and 31.3 < stretched.max() <= 30 / 0.95 + 0.1
    assert (down.abs() - right.abs()).abs().max() > 1
    assert torch.bincount(2 * (down > 0) + (right > 0), minlength=4).min() > len(down) / 8


def test_strong_augmentation_interpolates_over_black_and_leaves_no_graph(rng):
    turned = augment_strongly(torch.ones(50, 1, 41, 41, requires_grad=True), rng)
    assert not turned.requires_grad
    assert turned.amin((1, 2, 3)).round(decimals=3).unique().tolist() == [0, 1]  # corners, where it is turned
    assert ((turned > 0.2) & (turned < 0.8)).any()

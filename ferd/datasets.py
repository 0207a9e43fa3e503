"""What is known of each dataset, and a benchmark's images as uint8 tensors on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ferd.config import ImageFolder
from ferd.errors import FerdError
from ferd.files import atomic_write


@dataclass(frozen=True)
class Images:
    """images (N, channels, H, W) uint8 and labels (N,) int64.

    Images are kept in this order in memory, too, whatever theirs was: random numbers fall on pixels by it.
    Both are kept by the processor; what computes elsewhere moves them, or its batches.

    Raises:
        FerdError: they are something else, such as images of floats in [0, 1].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        kinds = images.dtype, images.ndim, labels.dtype, labels.shape
        if kinds != (torch.uint8, 4, torch.int64, images.shape[:1]):
            found = f"{images.dtype} {tuple(images.shape)} and {labels.dtype} {tuple(labels.shape)}"
            wanted = "uint8 images (N, channels, H, W) and int64 labels (N,)"
            raise FerdError(
                f"wanted are {wanted}, found {found}; floats in [0, 1] become bytes by ferd.pixels.to_uint8"
            )
        object.__setattr__(self, "images", images.cpu().contiguous())
        object.__setattr__(self, "labels", labels.cpu())


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before it is read; its class names stand in the order of its labels."""

    class_names: tuple[str, ...]
    channels: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, H, W) of an image."""
        return self.channels, self.size, self.size


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
# the first word or words of each class in words.txt, by WordNet number
TINY_IMAGENET_CLASSES = """
    goldfish European_fire_salamander bullfrog tailed_frog American_alligator boa_constrictor trilobite
    scorpion black_widow tarantula centipede goose koala jellyfish brain_coral snail slug sea_slug
    American_lobster spiny_lobster black_stork king_penguin albatross dugong Chihuahua Yorkshire_terrier
    golden_retriever Labrador_retriever German_shepherd standard_poodle tabby Persian_cat Egyptian_cat
    cougar lion brown_bear ladybug fly bee grasshopper walking_stick cockroach mantis dragonfly monarch
    sulphur_butterfly sea_cucumber guinea_pig hog ox bison bighorn gazelle Arabian_camel orangutan
    chimpanzee baboon African_elephant lesser_panda abacus academic_gown altar apron backpack bannister
    barbershop barn barrel basketball bathtub beach_wagon beacon beaker beer_bottle bikini binoculars
    birdhouse bow_tie brass broom bucket bullet_train butcher_shop candle cannon cardigan cash_machine
    CD_player chain chest Christmas_stocking cliff_dwelling computer_keyboard confectionery convertible
    crane dam desk dining_table drumstick dumbbell flagpole fountain freight_car frying_pan fur_coat
    gasmask go-kart gondola hourglass iPod jinrikisha kimono lampshade lawn_mower lifeboat limousine
    magnetic_compass maypole military_uniform miniskirt moving_van nail neck_brace obelisk oboe organ
    parking_meter pay-phone picket_fence pill_bottle plunger pole police_van poncho pop_bottle
    potter's_wheel projectile punching_bag reel refrigerator remote_control rocking_chair rugby_ball
    sandal school_bus scoreboard sewing_machine snorkel sock sombrero space_heater spider_web sports_car
    steel_arch_bridge stopwatch sunglasses suspension_bridge swimming_trunks syringe teapot teddy thatch
    torch tractor triumphal_arch trolleybus turnstile umbrella vestment viaduct volleyball water_jug
    water_tower wok wooden_spoon comic_book plate guacamole ice_cream ice_lolly pretzel mashed_potato
    cauliflower bell_pepper mushroom orange lemon banana pomegranate meat_loaf pizza potpie espresso alp
    cliff coral_reef lakeside seashore acorn
"""

DATASETS = {
    "digits": Dataset(tuple("0123456789"), 1, 8),
    "cifar10": Dataset(tuple(CIFAR10_CLASSES.split()), 3, 32),
    "cifar100": Dataset(tuple(CIFAR100_CLASSES.split()), 3, 32),
    "tiny-imagenet": Dataset(tuple(TINY_IMAGENET_CLASSES.split()), 3, 64),
}


def shape_of(data: Images) -> tuple[int, int, int]:
    """(channels, H, W) of an image."""
    channels, height, width = data.images.shape[1:]
    return channels, height, width


def require_batches(data: Images, batch_size: int) -> None:
    """Refuse what cannot be gone through batch by batch.

    Raises:
        FerdError: ``data`` is no ``Images``, or holds none, or a batch is empty.
    """
    if not isinstance(data, Images):
        raise FerdError(f"a {type(data).__name__} is no ferd.datasets.Images; take rows of it: take(rows)")
    if not len(data.labels):
        raise FerdError("there are no images; give some, of a benchmark by its data.*_per_class")
    if batch_size < 1:
        raise FerdError(f"batch_size {batch_size}: must be 1 or more")


def dataset(which: str | ImageFolder) -> Dataset:
    """The dataset of that name, or what is known of a folder of one's own.

    Raises:
        FerdError: there is none.
    """
    if isinstance(which, ImageFolder):
        return Dataset(tuple(which.classes), which.channels, which.image_size)
    if which not in DATASETS:
        known = ", ".join(DATASETS)
        raise FerdError(f"dataset {which!r} is unknown; choose from {known}, or describe your own folder")
    return DATASETS[which]


def first_per_class(
    labels: Tensor,
    skip: int,
    count: int,
    setting: str = "the benchmark's data.*_per_class",
    class_names: Sequence[str] = (),
) -> Tensor:
    """Indices, in order, of ``count`` examples of each class after its first ``skip``.

    Args:
        setting: what asks for so many, for the message; ``class_names``, too, where there are any.

    Raises:
        FerdError: a class has fewer than ``skip + count``.
    """
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        if len(members) < skip + count:
            name = class_names[label] if class_names else f"class {int(label)}"
            raise FerdError(
                f"{name} has {len(members)} images where {skip + count} are asked for; lower {setting}"
            )
        chosen.append(members[skip : skip + count])
    return torch.cat(chosen).sort().values


def require_known(labels: Tensor, classes: int) -> None:
    """Refuse labels (N,) other than 0 ... C − 1.

    Raises:
        FerdError: says which label.
    """
    for label in sorted(set(labels.unique().tolist()) - set(range(classes))):
        raise FerdError(f"there are images of class {label}, but the network has classes 0 to {classes - 1}")


def require_every_class(labels: Tensor, classes: int) -> None:
    """Refuse labels (N,) that leave out one of 0 ... C − 1: its accuracy would not be known.

    Raises:
        FerdError: says which class.
    """
    for label in sorted(set(range(classes)) - set(labels.unique().tolist())):
        raise FerdError(f"there is no image of class {label} of 0 to {classes - 1}; give some of every class")


def save_images(path: Path, part: Images) -> None:
    """Write images and labels, whole or not at all."""
    with atomic_write(path) as target:
        save_file({"images": part.images.contiguous(), "labels": part.labels.contiguous()}, target)


def load_images(path: Path) -> Images:
    """Images that ``save_images`` wrote, mapped into memory: read from disk as they are used.

    Raises:
        FerdError: the file is missing, damaged or another.
    """
    again = f"run `dvc repro data@{path.parent.name}`"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise FerdError(f"{path}: no such images; {again}") from None
    except (SafetensorError, OSError) as error:
        raise FerdError(f"{path}: cut off or damaged ({error}); {again}") from None
    if tensors.keys() != {"images", "labels"}:
        raise FerdError(f"{path}: holds {sorted(tensors)}, not images and labels; {again}")
    try:
        return Images(**tensors)
    except FerdError as error:
        raise FerdError(f"{path}: {error}; {again}") from None

"""The growing pool of synthetic images: append-only, uint8, one shard a round."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ferd.config import fingerprint
from ferd.errors import FerdError
from ferd.files import atomic_write
from ferd.origin import hash_of
from ferd.pixels import to_float


class Pool:
    """Images (N, channels, H, W) with their requested labels (N,).

    On disk a folder of ``round-0001.safetensors``, ...; in memory one tensor, allocated once.
    Opening a folder takes in its whole shards; while a pool grows, a last shard that was cut off is dropped.

    Args:
        folder: where the shards are; made at need.
        capacity: the largest number of images.
        shape: (channels, H, W).
        device: where samples are drawn.
        grows: False for a finished pool: it is read, and a shard that was cut off is refused.

    Raises:
        FerdError: shards are missing or cut off with others behind them, or of other images than ``shape``.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        grows: bool = True,
    ) -> None:
        self.folder, self.grows = folder, grows
        self.rounds = 0
        self.size = 0
        self._hashes: list[str] = []  # a round's each
        self._images = torch.empty((capacity, *shape), dtype=torch.uint8, device=device)
        self._labels = torch.empty(capacity, dtype=torch.int64, device=device)
        self._open()

    @property
    def labels(self) -> Tensor:
        """(N,) requested labels."""
        return self._labels[: self.size]

    @property
    def images(self) -> Tensor:
        """(N, channels, H, W) uint8."""
        return self._images[: self.size]

    def append(self, images: Tensor, labels: Tensor) -> None:
        """Add a round: images (B, channels, H, W) uint8, labels (B,) int64.

        Raises:
            FerdError: they are of another kind or size, or more than there is room for, or another process
                writes to the folder; nothing is written.
        """
        self._refuse_unfit(images, labels)
        shard = self._shard(self.rounds)
        if shard.exists():
            raise FerdError(f"{shard}: made by another process meanwhile; give each run a folder of its own")
        with atomic_write(shard) as part:
            save_file({"images": images.cpu().contiguous(), "labels": labels.cpu().contiguous()}, part)
        self._take(images, labels)

    def keep_rounds(self, rounds: int) -> None:
        """Forget the rounds that a resumed run is about to make again.

        Raises:
            FerdError: the folder holds fewer.
        """
        if self.rounds < rounds:
            raise FerdError(
                f"{self.folder}: holds {self.rounds} rounds where {rounds} were finished; delete it and the "
                "state that was saved beside it, to begin anew"
            )
        for number in reversed(range(rounds, self.rounds)):  # a kill in between leaves no gap
            self._shard(number).unlink()
        self.rounds = self.size = 0
        self._hashes.clear()
        for number in range(rounds):
            self._take(**load_file(self._shard(number)))

    def hash(self, rounds: int) -> str:
        """Of the images and labels of the first so many rounds."""
        return fingerprint(self._hashes[:rounds])

    def sample(self, batch_size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch drawn with replacement: float images in [0, 1] and labels."""
        rows = torch.randint(self.size, (batch_size,), generator=rng, device=self._images.device)
        return to_float(self._images[rows]), self._labels[rows]

    def _shard(self, number: int) -> Path:
        return self.folder / f"round-{number + 1:04d}.safetensors"

    def _refuse_unfit(self, images: Tensor, labels: Tensor) -> None:
        shape = self._images.shape[1:]
        if images.dtype != torch.uint8 or images.shape[1:] != shape:
            raise FerdError(
                f"{self.folder}: takes uint8 images (B, {', '.join(map(str, shape))}), not {images.dtype} "
                f"{tuple(images.shape)}; floats in [0, 1] become bytes by ferd.pixels.to_uint8"
            )
        if not len(images):
            raise FerdError(f"{self.folder}: takes an image a round or more, not none")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise FerdError(
                f"{self.folder}: takes int64 labels ({len(images)},), one an image, not {labels.dtype} "
                f"{tuple(labels.shape)}"
            )
        if self.size + len(images) > len(self._images):
            advice = (
                "delete it to begin anew, or go on with the schedule that it was made with"
                if self.grows
                else "run the method that makes it with the same schedule"
            )
            raise FerdError(
                f"{self.folder}: holds more than the {len(self._images)} images of this schedule; {advice}"
            )

    def _take(self, images: Tensor, labels: Tensor) -> None:
        self._refuse_unfit(images, labels)
        end = self.size + len(images)
        self._images[self.size : end] = images
        self._labels[self.size : end] = labels
        self.size = end
        self.rounds += 1
        self._hashes.append(hash_of(images, labels))

    def _open(self) -> None:
        shards = sorted(self.folder.glob("round-*.safetensors"), key=lambda path: (len(path.name), path))
        again = f"make {self.folder} again, or get it back by `dvc checkout`"
        if self.grows:
            again = f"delete {self.folder} to begin anew"
        for number, shard in enumerate(shards):
            if shard != self._shard(number):
                raise FerdError(f"{self._shard(number)}: missing, with later shards behind it; {again}")
            try:
                tensors = load_file(shard)
            except SafetensorError:
                if not self.grows:
                    raise FerdError(f"{shard}: cut off; {again}") from None
                if number + 1 < len(shards):
                    raise FerdError(f"{shard}: cut off, with later shards behind it; {again}") from None
                shard.unlink()
                break
            if tensors.keys() != {"images", "labels"}:
                raise FerdError(f"{shard}: no shard of a pool; move it away")
            self._take(**tensors)

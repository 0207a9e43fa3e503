"""What attacks on a network over a set of images share, which can go on where they were."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from ferd.datasets import Images, require_batches, require_known, shape_of
from ferd.models.classifier import Classifier, refuse_inference_mode, usable
from ferd.models.folding import attackable
from ferd.origin import origin_of_attacks, require_same
from ferd.pixels import to_float

RESULTS = "what there are results of already"


class AttackPass(ABC):
    """A network, a twin of it to be attacked, the images, and what the results so far are of.

    Results are of one set of weights: those that the first batch was attacked with.

    Args:
        role: what the network is called in messages.

    Raises:
        FerdError: the network is none that can be attacked (``ferd.models.folding.attackable``), ``data`` no
            ``Images`` of its classes or none, or ``batch_size`` not 1 or more.
    """

    def __init__(
        self,
        network: Classifier,
        role: str,
        data: Images,
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        require_batches(data, batch_size)
        self._network, self._role = network, role
        self._twin = attackable(network, role, shape_of(data), device)
        require_known(data.labels, network.classes)
        self.attacked = self._twin.network
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, usable(device)
        self._results_of: Mapping[str, str] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The results so far, and what they are of."""
        return {"origin": self._results_of or self._origin(), **self._results()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            FerdError: the state is of other networks, images, attacks or random numbers; nothing of it was
                taken.
        """
        here = self._origin()
        require_same(state.get("origin"), here)
        self._take(state)
        self._results_of = here

    @abstractmethod
    def _results(self) -> dict[str, Any]:
        """Results so far, as a state has them."""

    @abstractmethod
    def _take(self, state: Mapping[str, Any]) -> None:
        """Take over what ``_results`` gave."""

    def _origin(self) -> dict[str, str]:
        """What attacks now would be of, by hashes."""
        return origin_of_attacks(self._network, self.data, self.seed, self.batch_size)

    def _begin(self) -> None:
        """Have the twin follow the network's present weights.

        Raises:
            FerdError: there are results of others, the twin is another function by now, or inference mode is
                on.
        """
        refuse_inference_mode()
        here = self._origin()
        if self._results_of is not None:
            require_same(self._results_of, here, RESULTS)
        self._network.eval()
        self._twin.refresh()
        first = self.data.images[: self.batch_size].to(self.device)
        self._twin.require_following(self._role, to_float(first))
        self._results_of = here

"""A step of many small operations, recorded once on a GPU and replayed: CUDA graphs."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Recorded(Generic[T]):
    """A function of tensors, which a GPU records at the third call and replays from then on.

    A replay launches all of its operations at once, where a call launches them one by one from Python. For
    that the function must do the same work each time: no branch on a tensor's value, no copy to the host.
    What it reads or changes besides its arguments (weights, running statistics, an optimiser's state) must
    stay where it is in memory. Elsewhere than on a GPU, and for inputs of other shapes than the first, it is
    just called.

    Args:
        function: of tensors, to a tensor or a structure of tensors; a replay overwrites what the last one
            gave.
        rng: the generator on ``device`` that the function draws from: each replay draws on from it.
    """

    WARM_UP = 2  # calls that choose algorithms and make the optimiser's state

    def __init__(self, function: Callable[..., T], device: torch.device, rng: torch.Generator) -> None:
        self._function, self._device, self._rng = function, device, rng
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> T:
        """What the function gives for these inputs."""
        if self._device.type != "cuda":
            return self._function(*inputs)
        if self._calls == 0:
            self._shapes = [given.shape for given in inputs]
            self._stream = torch.cuda.Stream(self._device)
        elif self._shapes != [given.shape for given in inputs]:
            return self._function(*inputs)
        self._calls += 1
        if self._calls <= self.WARM_UP:
            return self._warm_up(*inputs)
        if self._graph is None:
            self._record(*inputs)
        else:
            for static, given in zip(self._inputs, inputs, strict=True):
                static.copy_(given)
        assert self._graph is not None
        self._graph.replay()
        return self._result

    def _warm_up(self, *inputs: Tensor) -> T:
        """A call on the stream that is recorded from: nothing that it leaves is tied to another one."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            result = self._function(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return result

    def _record(self, *inputs: Tensor) -> None:
        self._inputs = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._rng)
        with torch.cuda.graph(graph, stream=self._stream):
            self._result = self._function(*self._inputs)
        self._graph = graph

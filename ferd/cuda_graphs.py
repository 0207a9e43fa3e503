"""A step of many small operations, recorded once on a GPU and replayed: CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ferd.errors import FerdError

T = TypeVar("T")


class Draws:
    """The random numbers of a function, drawn before it runs instead of while it runs.

    ``noting`` is a context in which each operation that draws from a generator is noted; ``draw`` repeats
    them all, in their order; ``answering`` is a context in which each of them gives what ``draw`` has drawn.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Callable[..., Tensor], Sequence[Any], dict[str, Any], Tensor]] = []

    def noting(self) -> TorchDispatchMode:
        """For a call that draws as ever."""
        self._noted = []
        return _Mode(self._note)

    def draw(self) -> None:
        """The numbers of the next call."""
        for operation, arguments, options, numbers in self._noted:
            if _in_place(operation):
                operation(numbers, *arguments[1:], **options)
            else:
                numbers.copy_(operation(*arguments, **options))

    def answering(self) -> TorchDispatchMode:
        """For a call with the draws that were noted; each returns the numbers that ``draw`` prepared."""
        waiting = iter(self._noted)

        def answer(operation: Callable[..., Tensor], arguments: Sequence[Any], _: dict[str, Any]) -> Tensor:
            noted = next(waiting, None)
            if noted is None or operation is not noted[0]:
                was = noted and noted[0]
                raise FerdError(
                    f"{operation}: drawn where {was} was noted in a step that a GPU records; draw by the "
                    "same each time, or set recordable = False"
                )
            numbers = noted[-1]
            return arguments[0].copy_(numbers) if _in_place(operation) else numbers.clone()

        return _Mode(answer)

    def _note(
        self, operation: Callable[..., Tensor], arguments: Sequence[Any], options: dict[str, Any]
    ) -> Tensor:
        drawn = operation(*arguments, **options)
        own = arguments[1:] if _in_place(operation) else arguments
        if any(isinstance(argument, Tensor) for argument in own):
            raise FerdError(
                f"{operation}: draws by other tensors in a step that a GPU records; draw by a shape, such as "
                "torch.randn(x.shape, ...), or set recordable = False"
            )
        kept = [None, *own] if _in_place(operation) else own
        self._noted.append((operation, kept, options, torch.empty_like(drawn)))
        return drawn


class _Mode(TorchDispatchMode):
    """Gives the operations that draw from a generator to ``handle``; all others run."""

    def __init__(self, handle: Callable[..., Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handle = handle

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        drawing = kwargs.get("generator") is not None
        return self._handle(func, args, kwargs) if drawing else func(*args, **kwargs)


def _in_place(operation: Any) -> bool:
    return bool(operation._schema.is_mutable)


class Recorded(Generic[T]):
    """A CUDA graph of a function of tensors: recorded at the third call, replayed from then on.

    A replay launches all of its operations at once, where a call launches them one by one from Python. For
    that the function must do the same work each time: no branch on a tensor's value, no copy to the host,
    and numbers from Python as they were at the third call.
    What it reads or changes besides its arguments (weights, running statistics, an optimiser's state) must
    stay where it is in memory. Its random numbers are drawn before each replay, and are those that a call
    would draw. Elsewhere than on a GPU, and for inputs of other shapes than the first, it is just called.

    Args:
        function: of tensors, to a tensor or a structure of tensors; a replay overwrites what the last one
            gave.
    """

    WARM_UP = 2  # calls that choose algorithms and make the optimiser's state

    def __init__(self, function: Callable[..., T], device: torch.device) -> None:
        self._function, self._device = function, device
        self._draws = Draws()
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
            self._graph = self._record(*inputs)
        else:
            for static, given in zip(self._inputs, inputs, strict=True):
                static.copy_(given)
        self._draws.draw()
        self._graph.replay()
        return self._result

    def _warm_up(self, *inputs: Tensor) -> T:
        """A call on the stream that is recorded from: nothing that it leaves is tied to another one."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream), self._draws.noting(), algorithms_tried():
            result = self._function(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return result

    def _record(self, *inputs: Tensor) -> torch.cuda.CUDAGraph:
        self._inputs = [given.clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream), self._draws.answering(), algorithms_tried():
            self._result = self._function(*self._inputs)
        return graph


@contextmanager
def algorithms_tried() -> Iterator[None]:
    """cuDNN chooses by trying its algorithms: worth it for hours of equal shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before

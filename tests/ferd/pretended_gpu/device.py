"""A pretended GPU: a device whose tensors are computed on the processor, but are none of the processor's.

Operations that mix its tensors with the processor's fail as on a GPU, those that make the host wait are
counted, and what would be recorded as a CUDA graph is a tape: a replay repeats each operation into the
memory that the first one filled, with the numbers from Python that it had then. Autocast is as on a GPU
for what networks and losses here use. What it cannot tell: how a GPU rounds, how long anything takes.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from ferd.cuda_graphs import Recorded

NAME = "pretended"
GPU = torch.device("privateuseone", 0)  # so called until it has its name
ATEN = torch.ops.aten
WAITS = {
    ATEN._local_scalar_dense.default,
    ATEN._unique2.default,
    ATEN.equal.default,
    ATEN.is_nonzero.default,
    ATEN.masked_select.default,
    ATEN.nonzero.default,
}
AUTOCAST = "AutocastPrivateUse1"
IN_BFLOAT16 = ATEN.conv2d.default, ATEN.linear.default, ATEN.matmul.default
IN_FLOAT32 = ATEN.softmax.int, ATEN.log_softmax.int, ATEN.kl_div.default, ATEN.cross_entropy_loss.default


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _autocast(operation: Any, dtype: torch.dtype) -> Callable[..., Any]:
    """An operation on floats of this type, where autocast is on."""
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, AUTOCAST))

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


# Before a process's first backward(), which looks once what devices there are.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
_others, _cast = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_others.fallback(torch.library.fallthrough_kernel, AUTOCAST)
_types = dict.fromkeys(IN_BFLOAT16, torch.bfloat16) | dict.fromkeys(IN_FLOAT32, torch.float32)
for _operation, _dtype in _types.items():
    _cast.impl(_operation.name().removeprefix("aten::"), _autocast(_operation, _dtype), AUTOCAST)


class OnGpu(Tensor):
    """A tensor of the device; ``memory`` holds its numbers."""

    memory: Tensor
    is_cuda = True

    @staticmethod
    def __new__(cls, memory: Tensor) -> "OnGpu":
        return Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            dtype=memory.dtype,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            device=GPU,
        )

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: computed while no pretended GPU is there")

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """With the next, what has a network's ``to()`` exchange whole tensors."""
        return ["memory"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "OnGpu":
        return OnGpu(inner["memory"])

    def tolist(self) -> Any:
        return self.cpu().tolist()


class Generator(torch.Generator):
    """Of the device, or as ever."""

    ours: ClassVar[set[int]] = set()

    def __new__(cls, device: Any = "cpu") -> "Generator":
        on_gpu = torch.device(device).type == NAME
        made = super().__new__(cls, "cpu" if on_gpu else device)
        (cls.ours.add if on_gpu else cls.ours.discard)(made._cdata)
        return made

    @property
    def device(self) -> torch.device:
        return GPU if self._cdata in self.ours else super().device


class PretendedGpu(TorchDispatchMode):
    """The device, while the block runs; ``waits`` are the operations that had the host wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Any] = []
        self._tape: Tape | None = None

    @contextmanager
    def recording(self, tape: "Tape", **_: Any) -> Iterator[None]:
        """In place of ``torch.cuda.graph``: afterwards memory is as it was, since nothing was to run yet."""
        self._tape = tape
        try:
            yield
        finally:
            self._tape = None
            tape.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = {id(tensor.memory): tensor for tensor in given if isinstance(tensor, OnGpu)}
        made_here = "device" in kwargs and _is_gpu(kwargs["device"])
        if not here and not made_here:
            return func(*args, **kwargs)
        begins, ends = _copied(func, args, kwargs)
        self._require_possible(func, given if begins == ends else [], kwargs.get("generator"))
        if begins != ends or func in WAITS or _by_mask(func, args):
            assert self._tape is None, f"{func}: waits for the host in what is recorded"
            self.waits.append(func)
        if made_here:
            kwargs["device"] = torch.device("cpu")
        on_host = tree_map(lambda leaf: leaf.memory if isinstance(leaf, OnGpu) else leaf, (args, kwargs))
        if self._tape is not None:
            self._tape.keep(tensor.memory for tensor in here.values())
        result = _computed(func, *on_host)
        if not ends:
            return result
        if self._tape is not None:
            self._tape.note(func, *on_host, result, here)
        return return_and_correct_aliasing(func, args, kwargs, tree_map(partial(_on_gpu, here), result))

    def _require_possible(self, func: Any, given: list[Tensor], rng: torch.Generator | None) -> None:
        strangers = [tensor.shape for tensor in given if not isinstance(tensor, OnGpu) and tensor.dim()]
        assert not strangers, f"{func}: tensors of two devices, {strangers[0]} of the processor"
        assert rng is None or rng._cdata in Generator.ours, f"{func}: draws from the processor's generator"
        assert rng is None or self._tape is None, f"{func}: draws in what is recorded"


class Tape:
    """In place of ``torch.cuda.CUDAGraph``: operations, each with the memory that it filled."""

    def __init__(self) -> None:
        self._noted: list[tuple[Callable[[], Any], Any, set[int]]] = []
        self._made: dict[int, UntypedStorage] = {}  # since it began, by their addresses
        self._before: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def keep(self, memories: Iterable[Tensor]) -> None:
        """What memory held that was there before."""
        for memory in memories:
            storage = memory.untyped_storage()
            if storage.data_ptr() not in self._made | self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()

    def note(self, func: Any, args: Any, kwargs: Any, result: Any, given: Iterable[int]) -> None:
        """What ran, unless it only looks at memory in another way."""
        for memory in _tensors(result):
            if memory.untyped_storage().data_ptr() not in self._before:
                self._made[memory.untyped_storage().data_ptr()] = memory.untyped_storage()
        if not func.is_view:
            self._noted.append((partial(_computed, func, args, kwargs), result, set(given)))

    def undo(self) -> None:
        """Give memory back what it held."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self) -> None:
        """All again, in their order."""
        for operation, memories, given in self._noted:
            for old, new in zip(_tensors(memories), _tensors(operation()), strict=True):
                if id(old) not in given:
                    old.copy_(new)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _on_gpu(here: dict[int, OnGpu], result: Any) -> Any:
    """What an operation gave: one of the tensors that it was given, or a new one."""
    if not isinstance(result, Tensor):
        return result
    return here[id(result)] if id(result) in here else OnGpu(result)


def _copied(func: Any, args: Any, kwargs: Any) -> tuple[bool, bool]:
    """Whether the copied tensor is on the GPU, and the copy; of what is no copy, both."""
    if func is ATEN.copy_.default:
        return isinstance(args[1], OnGpu), isinstance(args[0], OnGpu)
    if func is ATEN._to_copy.default:
        begins = isinstance(args[0], OnGpu)
        return begins, _is_gpu(kwargs["device"]) if kwargs.get("device") is not None else begins
    return True, True


def _by_mask(func: Any, args: Any) -> bool:
    indices = args[1] if func in (ATEN.index.Tensor, ATEN.index_put_.default) else []
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """By the processor; what only a GPU has is put together."""
    if func is ATEN.empty_like.default:  # what is recorded may read it before it is filled
        return torch.zeros_like(*args, **kwargs)
    if func is ATEN.batch_norm_stats.default:
        inputs, epsilon = args
        var, mean = torch.var_mean(inputs.float(), (0, 2, 3), correction=0)
        return mean, (var + epsilon).rsqrt()
    return func(*args, **kwargs)


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """The device, with optimisers and recorded steps as on a real one."""
    mode = PretendedGpu()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch, "Generator", Generator)
    for name, fake in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": Tape,
        "graph": mode.recording,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.optim, "SGD", _fused(torch.optim.SGD))
    monkeypatch.setattr(Recorded, "__init__", _as_on_cuda(Recorded.__init__))
    with mode:
        yield mode


def _fused(optimiser: Any) -> Any:
    return lambda *args, **options: optimiser(*args, **options | {"fused": True})


def _as_on_cuda(make: Any) -> Any:
    return lambda self, function, device: make(self, function, torch.device("cuda"))

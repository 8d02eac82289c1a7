"""Tensors of a worker that only the way to another process treats in a manner of their own."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

__all__ = ["WorkerTensor", "by_value"]


class WorkerTensor(torch.Tensor):
    """For everything but the queue to the main process a plain tensor. So is what is computed from it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Any:
        return self.as_subclass(torch.Tensor).__deepcopy__(memo)  # type: ignore[no-untyped-call]


class _SmallTensor(WorkerTensor):
    """Goes by value."""


def by_value(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, on the CPU, but sent by value: torch gives each, however small, a segment of shared memory."""
    return tensor.as_subclass(_SmallTensor)


def _send(tensor: _SmallTensor) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
    return _arrive, (tensor.numpy().tobytes(), tensor.dtype, tuple(tensor.shape))


def _arrive(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


ForkingPickler.register(_SmallTensor, _send)

"""Shared memory that a worker writes again when the training loop has dropped the batch that lay in it.

A fresh shared segment costs a page fault and a zeroed page for every 4 kB: 8.5 ms for a batch of 15 MB, 1.1 ms if the
pages are there already (2026-11), which is a sixth of what decoding it takes. So a worker keeps its segments, slabs::

    0       int64   returned    the number of the last sending that the receiver has dropped; -1: never comes back
    4096    bytes   the tensor

The worker numbers its sendings of a slab. The process that receives the tensor maps the slab for itself, and when the
last reference to the tensor's memory is gone, it writes that number into the slab: only then is the slab free. So a
batch belongs to whoever holds it, for as long as that may be.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

import torch
import torch.multiprocessing

__all__ = ["empty_slab", "slabs_available"]

_HEADER_BYTES = 4096
_LOST = -1
# torch prefetches 2 batches for each worker; one is being filled, one is with the training loop.
_MAX_FREE = 4
_MADV_POPULATE_WRITE = 23  # Linux 5.14; the module mmap does not know it


def slabs_available() -> bool:
    """Whether tensors can be handed to another process in slabs here."""
    strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    return bool(sys.platform == "linux" and strategy == "file_descriptor")


def empty_slab(shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """An uninitialised uint8 tensor that fills a slab of this process."""
    global _pool
    if _pool is None or _pool.pid != os.getpid():
        _pool = _Pool()
    return _pool.empty(shape, stride)


class _Slab:
    """One segment, in the process that writes it."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = os.memfd_create("torchslip", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _HEADER_BYTES + size_bytes)
        self._map = mmap.mmap(self.fd, _HEADER_BYTES + size_bytes)
        with contextlib.suppress(OSError):  # an older kernel: the pages come one by one
            self._map.madvise(_MADV_POPULATE_WRITE)
        self._returned = ctypes.c_int64.from_buffer(self._map)
        self._sendings = 0
        self._in_use = False

    def __del__(self) -> None:
        os.close(self.fd)

    def memory(self) -> torch.Tensor:
        """The whole of it, uint8; in use until nothing in this process refers to it any more."""
        memory = (ctypes.c_uint8 * self.size_bytes).from_buffer(self._map, _HEADER_BYTES)
        self._in_use = True
        weakref.finalize(memory, self._release)
        return torch.frombuffer(memory, dtype=torch.uint8)

    def _release(self) -> None:
        self._in_use = False

    def next_sending(self) -> int:
        self._sendings += 1
        return self._sendings

    @property
    def is_free(self) -> bool:
        return not self._in_use and self._returned.value == self._sendings

    @property
    def is_lost(self) -> bool:
        return self._returned.value == _LOST


class _SlabTensor(torch.Tensor):
    """A tensor that fills a slab. What is computed from it is a plain tensor, and so is what a receiver gets."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _slab: _Slab

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(torch.Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Any:
        return self.as_subclass(torch.Tensor).__deepcopy__(memo)  # type: ignore[no-untyped-call]


class _Pool:
    """The slabs of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._slabs: list[_Slab] = []

    def empty(self, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
        size_bytes = 1
        for length in shape:
            size_bytes *= length
        slab = self._take(size_bytes)
        tensor = _over(slab.memory(), shape, stride).as_subclass(_SlabTensor)
        tensor._slab = slab
        return tensor

    def _take(self, size_bytes: int) -> _Slab:
        free = [slab for slab in self._slabs if slab.is_free]
        fitting = [slab for slab in free if slab.size_bytes == size_bytes]
        dropped = {*free} - {*fitting[:_MAX_FREE]}
        self._slabs = [slab for slab in self._slabs if slab not in dropped and not slab.is_lost]
        if fitting:
            return fitting[0]
        self._slabs.append(_Slab(size_bytes))
        return self._slabs[-1]

    def forget(self) -> None:
        """Use none of the slabs again."""
        self._slabs = []


class _Receipt:
    """A slab that this process received and has not given back."""

    def __init__(self, returned: ctypes.c_int64, sending: int) -> None:
        self._returned, self._sending, self._pid = returned, sending, os.getpid()
        _receipts.add(self)

    def give_back(self) -> None:
        # A fork has a copy of every tensor, whose end means nothing to the worker.
        if self._pid == os.getpid() and self in _receipts:
            _receipts.discard(self)
            self._returned.value = self._sending

    def lose(self) -> None:
        """Never give it back."""
        _receipts.discard(self)
        self._returned.value = _LOST


_pool: _Pool | None = None
_receipts: set[_Receipt] = set()


def _send(tensor: _SlabTensor) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
    slab = tensor._slab
    received = DupFd(slab.fd), slab.size_bytes, slab.next_sending(), tuple(tensor.shape), tensor.stride()
    return _receive, received


def _receive(
    descriptor: Any, size_bytes: int, sending: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    fd = descriptor.detach()
    try:
        mapped = mmap.mmap(fd, _HEADER_BYTES + size_bytes)
    finally:
        os.close(fd)
    memory = (ctypes.c_uint8 * size_bytes).from_buffer(mapped, _HEADER_BYTES)
    receipt = _Receipt(ctypes.c_int64.from_buffer(mapped), sending)
    weakref.finalize(memory, receipt.give_back).atexit = False
    return _over(torch.frombuffer(memory, dtype=torch.uint8), shape, stride)


def _over(memory: torch.Tensor, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """A tensor of its own, no view, over all of `memory`."""
    return torch.empty(0, dtype=torch.uint8).set_(memory.untyped_storage(), 0, tuple(shape), tuple(stride))


def _before_fork() -> None:
    # The child shares the pages of every slab it can see, for as long as it likes.
    if _pool is not None:
        _pool.forget()
    for receipt in list(_receipts):
        receipt.lose()


ForkingPickler.register(_SlabTensor, _send)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)

"""Shared memory that a worker writes again when the training loop has dropped the batch that lay in it.

A fresh shared segment costs a page fault and a zeroed page for every 4 kB: 8.5 ms for a batch of 15 MB, 1.1 ms if the
pages are there already (2026-11), which is a sixth of what decoding it takes. So a worker keeps its segments, slabs,
each for all large tensors of one batch::

    0       int64   returned    the number of the last filling that the receiver has dropped; -1: never comes back
    4096    bytes   the tensors, each at a multiple of 64

The worker numbers its fillings of a slab. The process that receives the tensors maps the slab for itself, and when the
last reference to the memory of any of them is gone, it writes that number into the slab: only then is the slab free. So
a batch belongs to whoever holds it, for as long as that may be.

The receiver opens the slab through the worker's descriptor in ``/proc``, 20 µs for a batch. To hand over a duplicate of
the descriptor, as `multiprocessing` and torch do for each tensor, takes a thread, a connection and two challenges:
0.5 ms in each of the two processes (2026-11).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing

from torchslip.loading._worker_tensor import WorkerTensor

__all__ = ["empty_in_slab", "in_same_slab", "slabs_available"]

_HEADER_BYTES = 4096
_ALIGNMENT = 64
_LOST = -1
# A slab that was not needed for so long is let go of. torch prefetches 2 batches for each worker, one is being filled,
# and one is with the training loop; batches that also have pictures of different sizes take two slabs.
_MAX_IDLE = 16
_MAX_SLACK = 4  # a slab may be so many times as large as what it is used for
_MADV_POPULATE_WRITE = 23  # Linux 5.14; the module mmap does not know it

Layout = tuple[Sequence[int], Sequence[int]]
"""Shape and strides, in bytes, of a tensor without gaps."""


def slabs_available() -> bool:
    """Whether tensors can be handed from this worker to another process in slabs."""
    strategy = torch.multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    return bool(sys.platform == "linux" and strategy == "file_descriptor") and _descriptors_are_visible()


@cache
def _descriptors_are_visible() -> bool:
    # Whether the parent may open what this process has open cannot be tried here; what it takes is the same.
    parent = multiprocessing.parent_process()
    try:
        return any(Path(f"/proc/{os.getpid() if parent is None else parent.pid}/fd").iterdir())
    except OSError:
        return False


def empty_in_slab(
    layouts: Sequence[Layout], *, spare: bool = False, keep_bytes: int | None = None
) -> list[torch.Tensor]:
    """Uninitialised uint8 tensors that share a slab of this process.

    Args:
        layouts: Shape and strides of each.
        spare: Choose a somewhat larger slab, because what comes next may be somewhat larger.
        keep_bytes: Slabs beyond so many bytes are transient: the receiver gives their pages back to the system.
    """
    global _pool
    if _pool is None or _pool.pid != os.getpid():
        _pool = _Pool()
    sizes = [math.prod(shape) for shape, _ in layouts]
    offsets = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
    filling = _Filling(_pool.take(offsets[-1], spare=spare, keep_bytes=keep_bytes))
    return [
        _slab_tensor(filling, offset, shape, strides)
        for (shape, strides), offset in zip(layouts, offsets, strict=False)
    ]


def in_same_slab(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`part`, a view without gaps of `whole`, which goes to another process in the slab of that, if it has one."""
    if not isinstance(whole, _SlabTensor):
        return part
    return _slab_tensor(whole._filling, whole._offset + int(part.storage_offset()), part.shape, part.stride())


def _slab_tensor(filling: _Filling, offset: int, shape: Sequence[int], strides: Sequence[int]) -> _SlabTensor:
    tensor = _over(filling.memory, offset, shape, strides).as_subclass(_SlabTensor)
    tensor._filling, tensor._offset = filling, offset
    return tensor


def _with_spare(size: int) -> int:
    """`size` rounded up to an eighth of a power of two."""
    step = 1 << max(size.bit_length() - 4, 12)
    return -(-size // step) * step


class _Slab:
    """One segment, in the process that writes it."""

    def __init__(self, size_bytes: int, *, transient: bool) -> None:
        self.size_bytes, self.transient = size_bytes, transient
        self.taken = 0  # the number of the latest taking from the pool
        self.fd = os.memfd_create("torchslip", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _HEADER_BYTES + size_bytes)
        self._map = mmap.mmap(self.fd, _HEADER_BYTES + size_bytes)
        with contextlib.suppress(OSError):  # an older kernel: the pages come one by one
            self._map.madvise(_MADV_POPULATE_WRITE)
        self._returned = ctypes.c_int64.from_buffer(self._map)
        self._fillings = 0
        self._sent = 0  # the number of the latest filling that was sent
        self._in_use = self._is_shared = False

    def __del__(self) -> None:
        os.close(self.fd)

    def memory(self) -> Any:
        """The whole of it; in use until nothing in this process refers to it any more."""
        memory = (ctypes.c_uint8 * self.size_bytes).from_buffer(self._map, _HEADER_BYTES)
        self._in_use = True
        self._fillings += 1
        weakref.finalize(memory, self._release)
        return memory

    def _release(self) -> None:
        self._in_use = False

    def send(self) -> tuple[int, int, int, int, int, bool]:
        """What a receiver has to know."""
        # With two receivers, nobody knows when the last of them has opened it, or is done.
        self._is_shared |= self._sent == self._fillings
        self._sent = self._fillings
        return os.getpid(), self.fd, os.fstat(self.fd).st_ino, self.size_bytes, self._fillings, self.transient

    @property
    def is_free(self) -> bool:
        """Whether it can be filled again."""
        return not self._in_use and self._returned.value == self._sent and not self._is_shared

    @property
    def is_lost(self) -> bool:
        """Whether it never can, and nobody will want to open it."""
        return self._returned.value == _LOST and not self._is_shared


class _Filling:
    """One use of a slab, by all tensors of a batch; pickled once for all that go together."""

    def __init__(self, slab: _Slab) -> None:
        self._slab = slab
        self.memory = slab.memory()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int, ...]]:
        return _open, self._slab.send()


class _SlabTensor(WorkerTensor):
    """A tensor within a slab."""

    _filling: _Filling
    _offset: int


class _Pool:
    """The slabs of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._takings = 0
        self._slabs: list[_Slab] = []
        self._retired: list[_Slab] = []

    def take(self, size_bytes: int, *, spare: bool, keep_bytes: int | None) -> _Slab:
        """A slab that is free and has at least this size. See `empty_in_slab`."""
        self._takings += 1
        self._retired = [slab for slab in self._retired if not slab.is_free and not slab.is_lost]
        oldest = self._takings - _MAX_IDLE
        self._slabs = [
            each
            for each in self._slabs
            if not (each.is_lost or (each.is_free and (each.transient or each.taken < oldest)))
        ]
        fitting = [
            slab for slab in self._slabs if slab.is_free and size_bytes <= slab.size_bytes <= _MAX_SLACK * size_bytes
        ]
        if fitting:
            slab = min(fitting, key=lambda each: (each.size_bytes, -each.taken))
        else:
            size = _with_spare(size_bytes) if spare else size_bytes
            kept = sum(each.size_bytes for each in self._slabs if not each.transient)
            if keep_bytes is None or kept + size <= keep_bytes:
                slab = _Slab(size, transient=False)
            else:
                slab = _Slab(size_bytes, transient=True)
            self._slabs.append(slab)
        slab.taken = self._takings
        return slab

    def forget(self) -> None:
        """Use none of the slabs again; those that are under way stay until they were dropped."""
        self._retired += self._slabs
        self._slabs = []


class _Receipt:
    """A slab that this process received and has not given back."""

    def __init__(self, mapped: mmap.mmap, filling: int, *, transient: bool) -> None:
        self._mapped, self._filling, self._transient, self._pid = mapped, filling, transient, os.getpid()
        self._returned = ctypes.c_int64.from_buffer(mapped)
        _receipts.add(self)

    def give_back(self) -> None:
        # A fork has a copy of every tensor, whose end means nothing to the worker.
        if self._pid == os.getpid() and self in _receipts:
            _receipts.discard(self)
            if self._transient:
                self._mapped.madvise(mmap.MADV_REMOVE, _HEADER_BYTES)
            self._returned.value = self._filling

    def lose(self) -> None:
        """Never give it back."""
        _receipts.discard(self)
        self._returned.value = _LOST


_pool: _Pool | None = None
_receipts: set[_Receipt] = set()


def _send(tensor: _SlabTensor) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
    return _arrive, (tensor._filling, tensor._offset, tuple(tensor.shape), tensor.stride())


def _open(pid: int, fd: int, inode: int, size_bytes: int, filling: int, transient: bool) -> Any:
    """The memory of a slab of another process; given back when nothing refers to it any more."""
    descriptor = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_ino != inode:
            raise RuntimeError(f"The worker {pid} has closed the memory of a batch that it sent.")
        mapped = mmap.mmap(descriptor, _HEADER_BYTES + size_bytes)
    finally:
        os.close(descriptor)
    memory = (ctypes.c_uint8 * size_bytes).from_buffer(mapped, _HEADER_BYTES)
    receipt = _Receipt(mapped, filling, transient=transient)
    weakref.finalize(memory, receipt.give_back).atexit = False
    return memory


def _arrive(memory: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    return _over(memory, offset, shape, strides)


def _over(memory: Any, offset: int, shape: Sequence[int], strides: Sequence[int]) -> torch.Tensor:
    """A tensor of its own, no view, over a part of `memory`."""
    part = torch.frombuffer(memory, dtype=torch.uint8, count=math.prod(shape), offset=offset)
    return torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage(), 0, tuple(shape), tuple(strides))


def _before_fork() -> None:
    # The child shares the pages of every slab it can see, for as long as it likes.
    if _pool is not None:
        _pool.forget()
    for receipt in list(_receipts):
        receipt.lose()


ForkingPickler.register(_SlabTensor, _send)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)

"""Batches to a device: staged in page-locked memory, copied on a stream of their own, one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from torchslip.loading._staging import CopyEvent, StagingRing, wait_for

__all__ = ["CudaLane", "HostLane", "Lane", "Sent", "deliver_ahead", "make_lane", "resolve_device", "tensors_in"]


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch on its way.

    Attributes:
        batch: As the consumer gets it.
        event: Its copies are done when this is; None: they are done.
    """

    batch: Any
    event: CopyEvent | None = None


class Lane(Protocol):
    """Where the work goes that brings batches to a device."""

    device: torch.device

    def send(self, batch: Any, finish: Callable[[Any], Any]) -> Sent:
        """Begin to bring a batch to the device; it may be freed when this returns.

        Args:
            batch: In host memory.
            finish: Done with it first: decodes what is still encoded.
        """

    def receive(self, sent: Sent) -> Any:
        """The batch, for work that is asked for from now on."""


class HostLane:
    """For the CPU, and for devices that copy in the stream of the consumer.

    Even on the CPU tensors are copied, as for a device: the batch of the worker is free at once.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def send(self, batch: Any, finish: Callable[[Any], Any]) -> Sent:
        """See `Lane.send`."""
        return Sent(_map_tensors(finish(batch), self._copy))

    def receive(self, sent: Sent) -> Any:
        """See `Lane.receive`."""
        return sent.batch

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cpu or tensor.layout != torch.strided:
            return tensor.to(self.device)
        return torch.empty_like(tensor, device=self.device).copy_(tensor)


class CudaLane:
    """For a GPU: copies go through pinned memory on a stream of their own, beside the work of the consumer.

    Args:
        device: The GPU, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ring = StagingRing(allocate=lambda count: torch.empty(count, dtype=torch.uint8, pin_memory=True))

    def send(self, batch: Any, finish: Callable[[Any], Any]) -> Sent:
        """See `Lane.send`."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = finish(batch)
            staged, event = self._ring.stage(tensors_in(batch)), torch.cuda.Event()  # type: ignore[no-untyped-call]
            try:
                moved = _map_tensors(
                    batch, lambda each: self._copy(staged[id(each)]) if id(each) in staged else each.to(self.device)
                )
            finally:
                event.record(self._stream)
                self._ring.sent(event)
        return Sent(moved, event)

    def receive(self, sent: Sent) -> Any:
        """See `Lane.receive`."""
        consumer = torch.cuda.current_stream(self.device)
        if isinstance(sent.event, torch.cuda.Event):
            consumer.wait_event(sent.event)
        elif sent.event is not None:
            wait_for(sent.event)
        for tensor in tensors_in(sent.batch):
            if tensor.is_cuda:
                # It was allocated on the other stream, which must not get this memory before the consumer is done.
                tensor.record_stream(consumer)
        return sent.batch

    def _copy(self, staged: torch.Tensor) -> torch.Tensor:
        moved = torch.empty_strided(staged.shape, staged.stride(), dtype=staged.dtype, device=self.device)
        return moved.copy_(staged, non_blocking=True)


def make_lane(device: torch.device) -> Lane:
    """The lane to a device. For a GPU this begins to use it: call it where workers run already.

    Raises:
        RuntimeError: If torch cannot use the device.
    """
    device = resolve_device(device)
    return CudaLane(device) if device.type == "cuda" else HostLane(device)


def resolve_device(device: torch.device) -> torch.device:
    """``cuda`` as the GPU that is current now.

    Raises:
        RuntimeError: If torch sees no such GPU.
    """
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise RuntimeError(
            f"device='{device}' needs a GPU that torch {torch.__version__} can use, and it sees {count}. Pass another "
            "device, or install a torch for CUDA; `torchslip doctor` shows what is there."
        )
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def deliver_ahead(batches: Iterator[Any], lane: Lane, finish: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches on the device of `lane`: each is handed out when the next one is on its way.

    An error of the batches comes behind those that were there before it.

    Args:
        batches: In host memory; a batch is freed before the next is asked for.
        lane: To the device.
        finish: See `Lane.send`.
    """
    waiting: list[Sent] = []
    while True:
        failure: Exception | None = None
        over = False
        try:
            waiting.append(lane.send(next(batches), finish))
        except StopIteration:
            over = True
        except Exception as error:
            failure = error
        if len(waiting) == 2 or ((over or failure) and waiting):
            # The consumer's reference is to be the last one.
            yield lane.receive(waiting.pop(0))
        if over:
            return
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # its traceback has this frame


def tensors_in(batch: Any) -> list[torch.Tensor]:
    """All tensors in dicts, lists and tuples, however deep."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return [tensor for each in values for tensor in tensors_in(each)]


def _map_tensors(batch: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same dicts, lists and tuples with other tensors."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_map_tensors(value, function) for value in batch]
    if isinstance(batch, tuple):
        values = [_map_tensors(value, function) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)
    return batch

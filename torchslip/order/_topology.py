"""Which rank this process is: given as arguments, else what `torch.distributed` says, else the only one."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed

__all__ = ["Topology"]


@dataclass(frozen=True, slots=True)
class Topology:
    """One rank among `world_size`."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must lie in [0, world_size); got rank={self.rank} and world_size={self.world_size}."
            )

    @classmethod
    def resolve(cls, rank: int | None, world_size: int | None) -> Topology:
        """The topology from arguments, or from `torch.distributed` where it is initialised, or a single rank.

        Raises:
            ValueError: If only one of the two is given, or if rank does not lie in ``[0, world_size)``.
        """
        if rank is not None and world_size is not None:
            return cls(rank, world_size)
        if rank is not None or world_size is not None:
            raise ValueError(f"Give both rank and world_size, or neither; got {rank=} and {world_size=}.")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls(0, 1)

"""Any source to MDS: writers and `pack`; the index of what several writers wrote; and looking at what was written.

In the package, ``torchslip.pack`` is the function; ``from torchslip.pack import verify`` finds the others as well.
"""

from torchslip.pack._cached import cached
from torchslip.pack._mds_writer import MDSWriter
from torchslip.pack._measure import ImageStatistics, measure
from torchslip.pack._merge import merge_index
from torchslip.pack._pack import Packed, pack
from torchslip.pack._packed_cache import PackedCache
from torchslip.pack._sync import Synced, sync
from torchslip.pack._transcode import Resize
from torchslip.pack._verify import Problem, Verified, verify
from torchslip.pack._warm import Warmed, warm

__all__ = [
    "ImageStatistics",
    "MDSWriter",
    "Packed",
    "PackedCache",
    "Problem",
    "Resize",
    "Synced",
    "Verified",
    "Warmed",
    "cached",
    "measure",
    "merge_index",
    "pack",
    "sync",
    "verify",
    "warm",
]

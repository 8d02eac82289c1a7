"""Any source to MDS: writers, `pack`, and the index of what several writers wrote."""

from torchslip.pack._mds_writer import MDSWriter
from torchslip.pack._merge import merge_index
from torchslip.pack._pack import Packed, pack
from torchslip.pack._transcode import Resize

__all__ = ["MDSWriter", "Packed", "Resize", "merge_index", "pack"]

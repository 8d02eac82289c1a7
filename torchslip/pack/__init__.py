"""Any source to MDS: writers, and the index of what several of them wrote."""

from torchslip.pack._mds_writer import MDSWriter
from torchslip.pack._merge import merge_index

__all__ = ["MDSWriter", "merge_index"]

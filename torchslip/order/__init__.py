"""Which sample when: orders, their division over ranks, and how far everyone is."""

from torchslip.order._cursor import STATE_VERSION, Cursor
from torchslip.order._lease_sampler import Exact, LeaseSampler
from torchslip.order._order import Fingerprint, Order, Sequential, Shuffled, Subset
from torchslip.order._permutation import Permutation
from torchslip.order._sampler import DistributedBatchSampler, IndexBatch
from torchslip.order._share import Share, Slice, Tail
from torchslip.order._topology import Topology

__all__ = [
    "STATE_VERSION",
    "Cursor",
    "DistributedBatchSampler",
    "Exact",
    "Fingerprint",
    "IndexBatch",
    "LeaseSampler",
    "Order",
    "Permutation",
    "Sequential",
    "Share",
    "Shuffled",
    "Slice",
    "Subset",
    "Tail",
    "Topology",
]

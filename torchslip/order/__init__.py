"""Which sample when: orders, their division over ranks, and how far everyone is."""

from torchslip.order._cursor import STATE_VERSION, Cursor
from torchslip.order._lease_sampler import Exact, LeaseSampler
from torchslip.order._mix import MixedOrder, Schedule, check_global_batch
from torchslip.order._mix_plan import Batching, SourceExhausted
from torchslip.order._mix_weights import choose_per_source
from torchslip.order._order import Fingerprint, Order, Sequential, Shuffled, Subset
from torchslip.order._permutation import Permutation
from torchslip.order._sampler import DistributedBatchSampler, IndexBatch
from torchslip.order._share import Share, Slice, Tail
from torchslip.order._topology import Topology

__all__ = [
    "STATE_VERSION",
    "Batching",
    "Cursor",
    "DistributedBatchSampler",
    "Exact",
    "Fingerprint",
    "IndexBatch",
    "LeaseSampler",
    "MixedOrder",
    "Order",
    "Permutation",
    "Schedule",
    "Sequential",
    "Share",
    "Shuffled",
    "Slice",
    "SourceExhausted",
    "Subset",
    "Tail",
    "Topology",
    "check_global_batch",
    "choose_per_source",
]

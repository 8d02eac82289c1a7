"""Where bytes live: folders and URLs, snapshots of what is there, and a cache of what was read from them."""

from torchslip.storage._cache import Entry, NodeCache
from torchslip.storage._cache_file import Held
from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, is_remote, open_folder
from torchslip.storage._lease import Lease, lease_at
from torchslip.storage._link import Link, has_state, parse_link
from torchslip.storage._lock import locked, locked_folder
from torchslip.storage._pinned import refuse_pinned
from torchslip.storage._resolve import resolve
from torchslip.storage._retry import Retry
from torchslip.storage._selection import LabelMode
from torchslip.storage._size import parse_bytes
from torchslip.storage._snapshot import Snapshot
from torchslip.storage._stat import FileStat

__all__ = [
    "TEMPORARY_PREFIX",
    "Entry",
    "FileStat",
    "Folder",
    "Held",
    "LabelMode",
    "Lease",
    "Link",
    "LocalFolder",
    "NodeCache",
    "Retry",
    "Snapshot",
    "has_state",
    "is_remote",
    "lease_at",
    "locked",
    "locked_folder",
    "open_folder",
    "parse_bytes",
    "parse_link",
    "refuse_pinned",
    "resolve",
]

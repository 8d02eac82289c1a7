"""A source in its packed form: found, downloaded, or built by one process."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchslip.errors import SampleError, StorageError
from torchslip.pack._pack import OnError, pack
from torchslip.pack._packed_entry import PackedEntry
from torchslip.pack._recipe import Recipe, make_recipe, open_source
from torchslip.sources import MDS, Source

__all__ = ["LEASE_SECONDS", "TIMEOUT_SECONDS", "Plan", "cached"]

TIMEOUT_SECONDS = 86_400.0
LEASE_SECONDS = 30.0

_DEFAULTS = {
    name: each.default for name, each in inspect.signature(pack).parameters.items() if each.default is not each.empty
}
# What decides where and how; `cached` does that itself.
_NOT_TAKEN = {"resume", "exist_ok", "store", "progress", "storage_options", "source_storage_options", "on_error"}


def cached(
    source: Source | str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    remote: str | os.PathLike[str] | None = None,
    wait: bool = True,
    timeout_seconds: float = TIMEOUT_SECONDS,
    lease_seconds: float = LEASE_SECONDS,
    on_error: OnError = "raise",
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    source_storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> MDS | Source:
    """The packed form of a source, which is packed when it is first asked for.

    ::

        source = ts.cached("s3://bucket/photos", root="/scratch/packed", remote="s3://team-cache/packed")
        train = ts.ImageDataset(source, views=ts.RandomResizedCrop(224), batch_size=256, shuffle=True)

    It is taken from `root`, else downloaded from `remote`, else built: by one process, while the others wait. With
    `remote`, what was built is uploaded, so that it is built once for all machines. Downloads and uploads are checked,
    and the index comes last. Killed at any moment, whoever comes next goes on: with the packing, the download or the
    upload. A damaged copy at the remote is built again and replaced.

    What is found is named by the fingerprint of the source and the options, so a changed source gets a packed form of
    its own, and the old one stays until you remove its folder. (Of a folder of pictures the fingerprint covers names
    and sizes: pictures of equal names and sizes are equal for it.)

    Args:
        source: A path that `torchslip.open` knows, or a source.
        root: The folder of packed datasets on this machine: a new or an empty one, or one that was used so before.
            Default: ``torchslip/packed`` in the user's cache folder.
        remote: A folder or URL that several machines share.
        wait: Whether to wait while another process builds, downloads or uploads; else the source itself comes back
            meanwhile. If nobody is at it, this process does it in any case.
        timeout_seconds: How long to wait for others. One that was killed keeps nobody waiting.
        lease_seconds: How long a machine that died keeps the others waiting, at a remote that is a URL.
        on_error: What happens with a record that cannot be read: ``raise``, or ``skip`` leaves it out, so that the
            following ids are others.
        progress: Show progress bars on a terminal.
        storage_options: For the storage of `remote`, as fsspec takes them.
        source_storage_options: For that of `source`, if it is a URL.
        **options: Of `torchslip.pack`: ``image``, ``shard_bytes``, ``compression``, ``label_mode``, ``executor``, ...
            Images are not decoded (``verify=False``) unless you ask for it.

    Returns:
        An `MDS`; with ``wait=False``, perhaps the source.

    Raises:
        FormatError: If `source` is not a dataset, or `root` holds files of others.
        SampleError: If a record cannot be read.
        StorageError: If `root` cannot be written, or `remote` does not answer.
        TimeoutError: If another process was still at it after `timeout_seconds`.
        TypeError: If an option is none of `torchslip.pack`, or one that has no place here.
        ValueError: If an option is not a valid one.
    """
    plan = Plan.make(
        source,
        root=root,
        remote=remote,
        lease_seconds=lease_seconds,
        storage_options=storage_options,
        source_storage_options=source_storage_options,
        options=options,
    )
    return plan.run(on_error=on_error, wait=wait, timeout_seconds=timeout_seconds, progress=progress)


class Plan:
    """A source and its packed form, which may not exist yet.

    Attributes:
        source: What is packed.
        recipe: How.
        entry: Where it is, or will be.
    """

    def __init__(self, source: Source, recipe: Recipe, entry: PackedEntry, options: Mapping[str, Any]) -> None:
        self.source, self.recipe, self.entry = source, recipe, entry
        self._options = options

    @classmethod
    def make(
        cls,
        source: Source | str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None,
        remote: str | os.PathLike[str] | None,
        lease_seconds: float,
        storage_options: Mapping[str, Any] | None,
        source_storage_options: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Plan:
        """Check the options and open the source. See `cached`."""
        unknown = sorted(set(options) - (set(_DEFAULTS) - _NOT_TAKEN))
        if unknown:
            raise TypeError(
                f"cached takes {', '.join(sorted(set(_DEFAULTS) - _NOT_TAKEN))} of the options of torchslip.pack; got "
                f"{', '.join(unknown)}."
            )
        values = {**_DEFAULTS, "verify": False, **options}
        opened = open_source(
            source,
            label_mode=values["label_mode"],
            require_labels=values["require_labels"],
            storage_options=source_storage_options,
        )
        # The arguments of `make_recipe` have the names of those of `pack`.
        named = {name: values[name] for name in inspect.signature(make_recipe).parameters if name in values}
        recipe = make_recipe(opened, **named, labels=values["label_mode"] != "none")
        entry = PackedEntry(
            recipe.fingerprint,
            root=root,
            remote=remote,
            storage_options=storage_options,
            lease_seconds=lease_seconds,
        )
        return cls(opened, recipe, entry, {name: values[name] for name in (*options, "verify")})

    def run(self, *, on_error: OnError, wait: bool, timeout_seconds: float, progress: bool) -> MDS | Source:
        """The packed form, made if need be. See `cached`."""

        def build(path: Path) -> None:
            pack(self.source, path, on_error=on_error, progress=progress, **self._options)

        outcome = self.entry.obtain(build, wait=wait, timeout_seconds=timeout_seconds, show=progress)
        found = None if outcome == "busy" else self.entry.find()
        if found is None:
            if outcome == "busy":
                if wait:
                    raise TimeoutError(
                        f"Another machine has been building {self.entry.path.name} for more than {timeout_seconds:.0f} "
                        "s. Wait for it, pass a larger timeout_seconds, or wait=False to read the source meanwhile."
                    )
                return self.source
            raise StorageError(f"{self.entry.path} was removed by another process while it was made; try again.")
        skipped = found.sidecar.skipped if found.sidecar is not None else ()
        if skipped and on_error == "raise":
            raise SampleError(
                f"Sample {skipped[0]['id']} was left out when {self.entry.path} was packed: {skipped[0]['where']}: "
                f"{skipped[0]['reason']}. Pass on_error='skip' to use it without the {len(skipped)} records that "
                "cannot be read, or mend them."
            )
        return found

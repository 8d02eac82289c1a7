"""What the processes do that test_pack_kill kills: pack small records, slowly enough to be caught at it."""

import time
from concurrent.futures import ThreadPoolExecutor

import torchslip as ts

RECORDS = 300


class Numbers:
    """Records that take a moment each."""

    schema = {"data": "bytes", "label": "int", "name": "str"}  # noqa: RUF012
    classes = ["even", "odd", "third"]  # noqa: RUF012
    fingerprint = "numbers"

    def __len__(self):
        return RECORDS

    def fetch(self, indices):
        time.sleep(0.001 * len(indices))
        return [
            {
                "data": index.to_bytes(2, "little") * (200 + index * 37 % 300),
                "label": index % 3,
                "name": f"n{index % 50}",
            }
            for index in indices
        ]


def pack_numbers(out, *, workers=2):
    with ThreadPoolExecutor(workers) as executor:
        return ts.pack(
            Numbers(), out, shard_bytes=6000, compression="zstd:1", executor=executor, exist_ok=False, on_error="raise"
        )

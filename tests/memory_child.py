"""Reads everything in a folder with a cap, and stops before and after, so that its memory is measured from outside.

``python memory_child.py FOLDER CAP_BYTES WORKERS``: prints ``ready``, waits for a line, reads, prints what it read.
"""

import sys

import torchslip as ts


def main(folder, cap_bytes, workers):
    dataset = ts.BytesDataset(
        folder, batch_size=512, constraints=ts.Constraints(max_inflight_bytes=cap_bytes), shuffle=True
    )
    loader = ts.DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0)
    # Worker processes, and the code that a first pass loads, are not data.
    for batch in loader:
        batch.to_torch()
    del batch
    print("ready", flush=True)
    sys.stdin.readline()
    samples = checksum = 0
    for batch in loader:
        payload, _, _ = batch.to_torch()
        samples += len(batch)
        checksum += int(payload[::4096].long().sum())
    print(samples, checksum, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""What the tests ask of mosaicml-streaming, run by its own python: ``mds_peer.py < job.json``.

A job writes a dataset of `mds_samples`, or reads one and prints the digests of every sample, a line each.
"""

import json
import sys

from mds_samples import COLUMNS, digests, sample
from streaming import CSVWriter, JSONWriter, LocalDataset, MDSWriter, StreamingDataset, TSVWriter, XSVWriter
from streaming.base.util import merge_index

WRITERS = {"mds": MDSWriter, "json": JSONWriter, "xsv": XSVWriter, "csv": CSVWriter, "tsv": TSVWriter}


def run(job):
    if job["do"] == "write":
        columns = job.get("columns", COLUMNS)
        with WRITERS[job.get("format", "mds")](columns=columns, out=job["out"], **job.get("options", {})) as writer:
            for index in job.get("indices", range(job.get("samples", 0))):
                writer.write(job["rows"][index] if "rows" in job else sample(index, columns))
    elif job["do"] == "merge":
        merge_index(job["root"])
    else:
        streamed = job["do"] == "stream"
        options = {"batch_size": 1, "allow_unsafe_types": True}
        dataset = StreamingDataset(local=job["root"], **options) if streamed else LocalDataset(job["root"])
        size = dataset.num_samples
        for index in range(size):
            print(digests(dataset[index]))


for each in json.load(sys.stdin):
    run(each)
    sys.stdout.flush()

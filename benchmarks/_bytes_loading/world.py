"""What is read: objects as files and behind a server of S3, and what the server can do."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BUCKET_URL", "Objects", "compile_program", "measure_ceiling", "prepare", "serve"]

BUCKET_URL = "s3://b/train"

_HERE = Path(__file__).parent
_KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "MX8_S3_FORCE_PATH_STYLE": "true",
}


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects of random bytes, all of one size.

    Attributes:
        folder: One file each.
        whole: All of them, one behind the other.
        count: How many.
        size: Bytes of each.
    """

    folder: Path
    whole: Path
    count: int
    size: int


def prepare(work: Path, count: int, size: int) -> Objects:
    """Make the objects, if they are not there from the last run."""
    made = Objects(work / f"{count}x{size}" / "train", work / f"{count}x{size}" / "whole.bin", count, size)
    if made.whole.exists():
        return made
    shutil.rmtree(made.folder, ignore_errors=True)
    made.folder.mkdir(parents=True)
    temporary = made.whole.with_suffix(".tmp")
    stream = random.Random(17)
    with temporary.open("wb") as file:
        for number in range(count):
            data = stream.randbytes(size)
            file.write(data)
            (made.folder / f"{number:06}.bin").write_bytes(data)
    temporary.rename(made.whole)
    return made


def compile_program(name: str, work: Path) -> Path:
    """Compile a C file of this folder."""
    program = work / name
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-o", str(program), str(_HERE / f"{name}.c")], check=True)
    return program


@contextlib.contextmanager
def serve(objects: Objects, work: Path, latency_ms: float) -> Iterator[tuple[int, int]]:
    """Run the server, named by the environment of what is started meanwhile; yields its process id and its port."""
    program = compile_program("s3_server", work)
    command = [program, objects.whole, objects.count, objects.size, latency_ms * 1000]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        os.environ.update(_KEYS, S3_ENDPOINT_URL=url, AWS_ENDPOINT_URL=url, MX8_S3_ENDPOINT_URL=url)
        try:
            yield process.pid, int(url.rpartition(":")[2])
        finally:
            process.kill()


def measure_ceiling(objects: Objects, work: Path, port: int, connections: int) -> float:
    """Objects per second that a client gets which throws them away."""
    program = compile_program("bare_client", work)
    command = [program, port, connections, objects.count, objects.size]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=300)
    return objects.count / float(done.stdout)

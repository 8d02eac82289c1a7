"""Samples for every MDS encoding, and digests of their values, for us and for mosaicml-streaming in its environment.

Imported by both sides, so it needs numpy and Pillow only.
"""

import hashlib
import io
import json
import random
from decimal import Decimal

import numpy as np
from PIL import Image

COLUMNS = {
    "array": "ndarray",
    "array_fixed": "ndarray:float32:3,4",
    "array_typed": "ndarray:int16",
    "big": "str_int",
    "blob": "bytes",
    "count": "int",
    "decimal": "str_decimal",
    "exact": "str_float",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "i8": "int8",
    "jpegs": "jpeg_array",
    "jpegs2": "jpegarray",
    "list_jpeg": "list[jpeg]",
    "list_pil": "list[pil]",
    "list_png": "list[png]",
    "meta": "json",
    "object": "pkl",
    "photo": "jpeg",
    "picture": "png",
    "pixels": "pil",
    "text": "str",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "u8": "uint8",
}
SIMPLE_COLUMNS = {"count": "int", "blob": "bytes", "text": "str", "f64": "float64"}


def image(rng, mode="RGB"):
    width, height = rng.integers(1, 40, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def jpeg(rng):
    out = io.BytesIO()
    image(rng).save(out, "JPEG", quality=95)
    return out.getvalue()


def sample(index, columns=COLUMNS):
    """The sample `index`, the same in every process."""
    rng = np.random.default_rng(index)
    integer = int(rng.integers(-(2**62), 2**62))
    shape = [(3,), (2, 3), (300, 1), (1, 2, 3, 4)][index % 4]
    dtype = ["uint8", "int16", "float16", "float64", "uint64"][index % 5]
    mode = ["RGB", "L", "RGBA", "1", "P", "CMYK", "LA"][index % 7]
    values = {
        "array": np.asfortranarray(rng.integers(0, 100, shape).astype(dtype)),
        "array_fixed": rng.standard_normal((3, 4)).astype(np.float32),
        "array_typed": rng.integers(-99, 99, shape).astype(np.int16),
        "big": integer * 10**20,
        "blob": random.Random(index).randbytes(index * 37 % 500),
        "count": integer,
        "decimal": Decimal(integer) / 7,
        "exact": float(rng.standard_normal()) * 1e22,
        "f16": float(rng.standard_normal()),
        "f32": np.float32(rng.standard_normal()),
        "f64": float(rng.standard_normal()),
        "i16": integer % 2**16 - 2**15,
        "i32": integer % 2**32 - 2**31,
        "i64": integer,
        "i8": integer % 2**8 - 2**7,
        "jpegs": [jpeg(rng) for _ in range(1 + index % 3)],
        "jpegs2": [jpeg(rng)],
        "list_jpeg": [image(rng) for _ in range(index % 3)],
        "list_pil": [image(rng, "L") for _ in range(index % 3)],
        "list_png": [image(rng) for _ in range(index % 3)],
        "meta": {"é": index, "list": [None, 1.5, True], "nested": {"a": "b"}},
        "object": {"a": (index, None), "b": "text"},
        "photo": jpeg(rng) if index % 2 else image(rng),
        "picture": image(rng, ["RGB", "L", "RGBA"][index % 3]),
        "pixels": image(rng, mode),
        "text": "ä€😀" * (index % 5),
        "u16": integer % 2**16,
        "u32": integer % 2**32,
        "u64": integer % 2**64,
        "u8": integer % 2**8,
    }
    return {name: values[name] for name in columns}


def digest(value):
    """A hash of a decoded value that does not depend on the library that decoded it."""
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value):
    if isinstance(value, Image.Image):
        return ("image", value.mode, value.size, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, np.generic):
        return (value.dtype.str, value.tobytes())
    if isinstance(value, dict):
        return sorted((str(name), _plain(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return (type(value).__name__, repr(value))


def digests(record):
    """Column name to digest, as JSON."""
    return json.dumps({name: digest(value) for name, value in sorted(record.items())})

"""The 28 column encodings of MDS: pinned bytes, lossless round trips, errors instead of silent damage."""

import io
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_samples import COLUMNS, digest, image, jpeg, sample
from PIL import Image

from torchslip.sources.mds import ENCODINGS, parse_encoding

# By the byte layouts in the modules, worked out by hand.
PINNED = [
    ("bytes", b"\x00\xff", "00ff"),
    ("str", "ä€", "c3a4e282ac"),
    ("int", -2, "feffffffffffffff"),
    ("int", True, "0100000000000000"),
    ("uint8", 200, "c8"),
    ("int16", -2, "feff"),
    ("uint32", 1, "01000000"),
    ("float16", 1.5, "003e"),
    ("float32", 1.5, "0000c03f"),
    ("float64", 1.5, "000000000000f83f"),
    ("str_int", -(10**20), b"-100000000000000000000".hex()),
    ("str_float", 1e22, b"1e+22".hex()),
    ("str_decimal", Decimal("4E+15"), b"4E+15".hex()),
    ("json", {"é": math.nan}, rb'{"\u00e9": NaN}'.hex()),
    ("json", np.ones(2, np.int8), b"[1, 1]".hex()),
    ("ndarray", np.arange(6, dtype=np.int16).reshape(2, 3), "11080203" + "000001000200030004000500"),
    ("ndarray:int16", np.arange(6, dtype=np.int16).reshape(2, 3), "080203" + "000001000200030004000500"),
    ("ndarray:uint8:2", np.array([1, 2], np.uint8), "0102"),
    ("ndarray", np.asfortranarray([[1, 2], [3, 4]]).astype(np.uint8), "0808020201020304"),
    ("pil", Image.new("L", (2, 1), 7), "0200000001000000010000004c0707"),
    ("list[pil]", [Image.new("L", (1, 1), 7)], "00000000010000000e0000000100000001000000010000004c07"),
    ("jpegarray", [b"ab", b"c"], "020000000200000001000000616263"),
    ("jpeg_array", [], "00000000"),
]


@pytest.mark.parametrize(("name", "value", "expected"), PINNED)
def test_the_bytes_of_a_value_are_pinned(name, value, expected):
    assert parse_encoding(name).encode(value).hex() == expected


def test_a_shape_takes_the_least_width_that_holds_its_largest_dimension():
    assert parse_encoding("ndarray").encode(np.zeros((300, 1), np.uint8))[:6].hex() == "08092c010100"


def test_there_are_28_encodings():
    assert len(ENCODINGS) == 28
    assert {encoding.partition(":")[0] for encoding in COLUMNS.values()} == set(ENCODINGS)


@pytest.mark.parametrize("index", range(20))
def test_every_value_comes_back_as_it_was_written(index):
    lossy = {"photo", "list_jpeg", "jpegs", "jpegs2"}
    for name, value in sample(index).items():
        if name in lossy:
            continue
        encoding = parse_encoding(COLUMNS[name])
        back = encoding.decode(encoding.encode(value))
        if isinstance(back, np.generic):
            value = back.dtype.type(value)
        elif isinstance(back, np.ndarray):
            value = np.ascontiguousarray(value)
        assert digest(back) == digest(value), name


@pytest.mark.parametrize("name", ENCODINGS)
def test_bytes_are_stored_unchanged_in_any_column(name):
    encoding = parse_encoding(name)
    data = b"\x07" * (encoding.size or 11)
    assert encoding.encode(data) is data


@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_holds_every_integer_of_its_range(value):
    for name in ("int", "int64"):
        encoding = parse_encoding(name)
        assert encoding.field(encoding.encode(value)) == value


@given(st.floats(width=64))
def test_floats_come_back_exactly(value):
    for name in ("float64", "str_float"):
        encoding = parse_encoding(name)
        np.testing.assert_equal(encoding.field(encoding.encode(value)), value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back_exactly(value):
    encoding = parse_encoding("str")
    assert encoding.field(encoding.encode(value)) == value


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_json_comes_back_exactly(value):
    encoding = parse_encoding("json")
    assert encoding.field(encoding.encode(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("value", [np.int64(5), np.uint8(5), True + 4])
def test_integers_of_numpy_are_integers(value):
    assert parse_encoding("int").encode(value) == (5).to_bytes(8, "little")
    assert parse_encoding("str_int").encode(value) == b"5"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("int", 2**63, "does not fit into int64; use the encoding str_int"),
        ("uint8", 256, "256 does not fit into uint8"),
        ("uint8", np.int64(256), "256 does not fit into uint8"),
        ("int8", -129, "-129 does not fit into int8"),
        ("int16", b"123", "int16 has 2 bytes; got 3"),
        ("uint8", [1, 2], "uint8 has 1 bytes; got 2"),
        ("ndarray:float32:3,4", b"123", "has 48 bytes; got 3"),
        ("ndarray", np.arange(3, dtype=">i4"), r"big-endian .*convert it with array.astype"),
        ("ndarray", np.zeros(2, bool), "dtype bool cannot be stored"),
        ("ndarray", np.zeros((2, 0)), "none of them 0"),
        ("ndarray", np.array(1.0), "1 to 63 dimensions"),
        ("ndarray:int16", np.zeros(2, np.int32), "holds int16; the array is int32"),
        ("ndarray:int16:2,3", np.zeros((3, 2), np.int16), r"holds shape \(2, 3\)"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_says_so(name, value, message):
    with pytest.raises(ValueError, match=message):
        parse_encoding(name).encode(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("str", 1), ("int", 1.5), ("bytes", "text"), ("str_int", 1.5), ("str_float", 1), ("str_decimal", 1.0)),
        *(("ndarray", [1, 2]), ("jpeg", "path.jpg"), ("pil", 5), ("list[png]", ()), ("jpeg_array", [1])),
        ("json", {1, 2}),
    ],
)
def test_a_value_of_another_type_is_an_error(name, value):
    with pytest.raises(TypeError):
        parse_encoding(name).encode(value)


@pytest.mark.parametrize(
    "name",
    [
        *("", "jpeg:90", "tensor", "ndarray:", "ndarray:bool", "ndarray:int8:", "ndarray:int8:0", "ndarray:int8:1,-1"),
        *("ndarray::2,3", "ndarray:int8:2:3", "INT", "ndarray:int8:²"),
    ],
)
def test_an_unknown_encoding_is_an_error(name):
    with pytest.raises(ValueError, match=r"encoding|ndarray"):
        parse_encoding(name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *(
            ("ndarray", b""),
            ("ndarray", b"\x05\x08\x01"),
            ("ndarray", b"\x11\x08\x02"),
            ("ndarray:int16", b"\x08\x02\x03"),
        ),
        *(("ndarray", b"\x08\x00"), ("ndarray", b"\x08\x07" + b"\xff" * 8), ("ndarray:int16", b"")),
        *(("pil", b""), ("pil", b"\xff" * 20), ("pil", bytes(12)), ("pil", b"\xff\xff\0\0" * 2 + b"\1\0\0\0L")),
        *(("jpegarray", b"\1"), ("jpegarray", b"\xff" * 8), ("list[png]", b"\0" * 4 + b"\2\0\0\0" + b"\1\0\0\0" * 2)),
        *(("str", b"\xff"), ("str_int", b"x"), ("str_float", b""), ("json", b"{"), ("int", b"123")),
    ],
)
def test_damaged_bytes_are_an_error_and_no_value(name, data):
    with pytest.raises(ValueError):
        parse_encoding(name).decode(data)


def opened(data):
    return Image.open(io.BytesIO(data))


def loaded(data):
    picture = opened(data)
    picture.load()
    return picture


def test_a_decoded_jpeg_that_has_its_bytes_is_not_encoded_again(tmp_path):
    data = jpeg(np.random.default_rng(0))
    (tmp_path / "a.jpg").write_bytes(data)
    encoding = parse_encoding("jpeg")
    assert encoding.encode(opened(data)) == data
    assert encoding.encode(encoding.decode(data)) == data
    again = encoding.decode(data)
    again.load()
    assert encoding.encode(again) == data
    with Image.open(tmp_path / "a.jpg") as lazy:
        assert encoding.encode(lazy) == data
        lazy.load()
        assert encoding.encode(lazy) == data


def test_pixels_that_were_changed_after_decoding_are_what_is_written(tmp_path):
    data = jpeg(np.random.default_rng(0))
    (tmp_path / "a.jpg").write_bytes(data)
    encoding = parse_encoding("jpeg")
    with Image.open(tmp_path / "a.jpg") as from_file:
        for picture in (encoding.decode(data), from_file):
            picture.paste((255, 0, 0), (0, 0, *picture.size))
            red = np.asarray(opened(encoding.encode(picture)))
            assert red[..., 0].min() > 250
            assert red[..., 1:].max() < 5


def test_an_image_without_a_file_is_encoded_as_pillow_does():
    picture = image(np.random.default_rng(0))
    out = io.BytesIO()
    picture.save(out, "JPEG")
    assert parse_encoding("jpeg").encode(picture) == out.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "F", "I", "P"])
def test_raw_pixels_are_read_as_a_file_with_the_same_pixels(mode):
    picture = image(np.random.default_rng(0), "L" if mode in ("I;16", "F", "I") else "RGB").convert(mode)
    encoding = parse_encoding("pil")
    with opened(encoding.field(encoding.encode(picture))) as back:
        assert back.size == picture.size
        assert back.mode == ("L" if mode == "P" else mode)
        assert back.tobytes() == picture.tobytes()


def test_a_decoded_array_can_be_written_to():
    encoding = parse_encoding("ndarray")
    array = encoding.decode(encoding.encode(np.zeros(3)))
    array += 1
    assert array.flags.writeable
    assert array.flags.owndata or array.base is not None

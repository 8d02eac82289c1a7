"""What a record of an MDS dataset holds."""

from __future__ import annotations

from collections.abc import Sequence

from torchslip.errors import FormatError
from torchslip.sources._source import FieldKind
from torchslip.sources.mds._encodings import parse_encoding
from torchslip.sources.mds._index import Index
from torchslip.sources.mds._layout import Layout

__all__ = ["read_schema"]


def read_schema(
    index: Index, where: str, columns: Sequence[str] | None, image_columns: Sequence[str], allow_pickle: bool
) -> dict[str, FieldKind]:
    """The columns of a dataset and their kinds, in the order of the index.

    Args:
        index: Its index.
        where: The path or URL of that.
        columns: The columns that are wanted; None: all.
        image_columns: Those of encoding ``bytes`` whose values are image files.
        allow_pickle: Whether ``pkl`` columns are unpickled.

    Raises:
        FormatError: If its shards do not have the same columns.
        ValueError: If a column does not exist or cannot be an image.
    """
    schemas = [_layout_schema(layout, image_columns, allow_pickle) for layout in index.layouts]
    for other in schemas[1:]:
        if other != schemas[0]:
            raise FormatError(f"The shards do not have the same columns: {schemas[0]} and {other}: {where}")
    schema = schemas[0] if schemas else {}
    for name in (*(columns or ()), *image_columns) if schemas else ():
        if name not in schema:
            raise ValueError(f"There is no column {name!r}; the dataset has {', '.join(schema)}.")
    return {name: kind for name, kind in schema.items() if columns is None or name in columns}


def _layout_schema(layout: Layout, image_columns: Sequence[str], allow_pickle: bool) -> dict[str, FieldKind]:
    schema: dict[str, FieldKind] = {}
    for name, encoding in layout.columns:
        # The text formats have an encoding that mds has not, called as its kind.
        kind: FieldKind = "float" if encoding == "float" else parse_encoding(encoding).kind
        if name in image_columns:
            if encoding != "bytes" and kind != "image":
                raise ValueError(f"The column {name!r} has encoding {encoding}; only bytes can be declared images.")
            kind = "image"
        elif encoding == "pkl" and allow_pickle:
            kind = "json"
        schema[name] = kind
    return schema

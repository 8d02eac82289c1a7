"""What is stored: the `Source` protocol, the formats that fulfil it, and `open`, which finds the right one."""

from torchslip.sources._folder import IMG_EXTENSIONS, ImageFolder, LabelMode
from torchslip.sources._objects import ObjectKind, Objects
from torchslip.sources._open import FORMATS, Format, open
from torchslip.sources._source import (
    FieldKind,
    Record,
    Schema,
    Source,
    checked_indices,
    image_fields,
    locate,
)
from torchslip.sources.mds import MDS

__all__ = [
    "FORMATS",
    "IMG_EXTENSIONS",
    "MDS",
    "FieldKind",
    "Format",
    "ImageFolder",
    "LabelMode",
    "ObjectKind",
    "Objects",
    "Record",
    "Schema",
    "Source",
    "checked_indices",
    "image_fields",
    "locate",
    "open",
]

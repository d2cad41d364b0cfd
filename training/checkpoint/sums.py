"""Size and sha256 of files: what a manifest says of them, and whether the storage gives it back."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError

PIECE = 1 << 24  # bytes read at once


class Damaged(DataError):
    """A file is not as it was written."""


def check_file(path: str, expected: Mapping[str, Any]) -> None:
    """Read a file in pieces and compare it with `bytes` and `sha256` of its manifest; raises Damaged."""
    digest, size, data = hashlib.sha256(), 0, b""
    while size == 0 or len(data) == PIECE:
        data = storage.read_range(path, size, size + PIECE)
        if not data:
            break
        digest.update(data)
        size += len(data)
    compare(path, size, digest.hexdigest(), expected)


def compare(path: str, size: int, sha256: str, expected: Mapping[str, Any]) -> None:
    """Raises Damaged unless the size in bytes and the sum are those of the manifest."""
    if size != expected["bytes"] or sha256 != expected["sha256"]:
        raise Damaged(f"{path}: damaged ({size} bytes, {expected['bytes']} expected, or another sha256); use an older checkpoint")

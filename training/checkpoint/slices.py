"""Parts of the tensors of a checkpoint: a rank reads its own elements, and no file is ever held whole."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import DataError
from training.checkpoint.patience import ask_patiently

PIECE = 1 << 24  # bytes read at once
FIRST_READ = 1 << 18  # bytes; the header of a file of some thousand tensors
BYTES_PER_ELEMENT = 4


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: the file, the byte of its first element, and what the header says of it."""

    path: str
    begin: int
    dtype: str
    shape: tuple[int, ...]


class Slices:
    """The fp32 tensors in some safetensors files, each known by its name and read in parts.

    Args:
        paths: the files of one kind, with different tensors.
        patience_s: seconds for which a store that does not answer is asked again; None asks once.
    """

    def __init__(self, paths: Iterable[str], patience_s: float | None = None) -> None:
        self._paths, self._patience_s = list(paths), patience_s

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of the flattened tensor: fp32 [length].

        Raises:
            DataError: no such tensor, no such elements, not fp32, or the file is cut short.
        """
        place = self._place(name)
        if place.dtype != "F32":
            raise DataError(f"{place.path}: {name} is of type {place.dtype}, expected F32; was it written by another program?")
        if not 0 <= start <= start + length <= math.prod(place.shape):
            raise DataError(f"{place.path}: {name} has shape {place.shape}, without elements {start} to {start + length}; use a checkpoint of this model")
        elements = torch.empty(length)
        wanted, begin = elements.view(torch.uint8), place.begin + start * BYTES_PER_ELEMENT
        for offset in range(0, len(wanted), PIECE):
            piece = wanted[offset : offset + PIECE]
            data = self._read(place.path, begin + offset, begin + offset + len(piece))
            if len(data) != len(piece):
                raise DataError(f"{place.path}: ends within {name}; use an older checkpoint")
            piece.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return elements

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise DataError(f"{', '.join(self._paths)}: no tensor {name}; use a checkpoint of this model")
        return self._places[name]

    @cached_property
    def _places(self) -> dict[str, _Place]:
        return {name: place for path in self._paths for name, place in self._places_in(path).items()}

    def _places_in(self, path: str) -> dict[str, _Place]:
        """The header of a safetensors file: 8 bytes with its length, then JSON, then the elements."""
        data = self._read(path, 0, FIRST_READ)
        begin = 8 + int.from_bytes(data[:8], "little")
        if FIRST_READ < begin < 1 << 27:  # longer than any we write: refused by the parser
            data = self._read(path, 0, begin)
        try:
            header = json.loads(data[8:begin])
            header.pop("__metadata__", None)
            return {name: _Place(path, begin + about["data_offsets"][0], about["dtype"], tuple(about["shape"])) for name, about in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{path}: not a readable safetensors file ({type(error).__name__} in its header); use an older checkpoint") from error

    def _read(self, path: str, start: int, end: int) -> bytes:
        return ask_patiently(lambda: storage.read_range(path, start, end), path, self._patience_s)

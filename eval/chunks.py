"""Long computations in chunks that survive `kill -9`: each finished chunk is a file, and a second run computes only what is missing."""

import io
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from pipeline.core import storage
from pipeline.core.logs import console
from pipeline.core.stopping import raise_if_stopping

Array = NDArray[Any]
Arrays = dict[str, Array]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where finished chunks are kept; whatever the results depend on belongs into the folder's name."""

    folder: Path | None = None  # None keeps nothing
    run_folder: Path | None = None  # looked at for a STOP file between chunks

    def in_chunks(self, name: str, total: int, size: int, compute: Callable[[int, int], Mapping[str, Array]]) -> Arrays:
        """Join `compute(start, stop)` over [0, total), one file `<name>-<start>.npz` for every `size` items.

        Args:
            compute: arrays whose first axis is the items from start to stop.

        Raises:
            Stopped: a signal or a STOP file asked for it; the chunks so far are kept.
        """
        chunks = []
        for start in track(range(0, total, size), description=name, console=console, transient=True, disable=not console.is_terminal):
            raise_if_stopping(self.run_folder)
            chunks.append(self._chunk(name, start, min(start + size, total), compute))
        joined = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
        assert all(len(array) == total for array in joined.values()), f"{name}: {total} items, got { {key: len(array) for key, array in joined.items()} }"
        return joined

    def _chunk(self, name: str, start: int, stop: int, compute: Callable[[int, int], Mapping[str, Array]]) -> Arrays:
        file = self.folder / f"{name}-{start:09d}.npz" if self.folder is not None else None
        if file is not None and (finished := _read(file, stop - start)) is not None:
            return finished
        chunk = dict(compute(start, stop))
        if file is not None:
            _write(file, chunk)
        return chunk


def _read(file: Path, rows: int) -> Arrays | None:
    """The finished chunk, or None when it is absent, damaged or of another size: then it is computed again."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            chunk = {key: stored[key] for key in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); computing it again", file, error)
        return None
    return chunk if chunk and all(len(array) == rows for array in chunk.values()) else None


def _write(file: Path, chunk: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **chunk)
    storage.write_bytes(str(file), buffer.getvalue())

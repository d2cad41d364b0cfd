"""A file that grows while the disk may be full for a time."""

import io
import logging
import threading
from pathlib import Path

log = logging.getLogger(__name__)


class PatientFile:
    """Appends to `path` at once and without a buffer; what the disk does not take is written before what comes next."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "a")
        self._waiting = b""
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Warns when the disk begins to refuse; what was written in part is completed later, so nothing is torn."""
        with self._lock:
            full = bool(self._waiting)
            self._waiting += data
            try:
                self._write_waiting()
            except OSError as error:
                if not full:
                    log.warning("%s: %s; training goes on, and what is missing will follow when it can be written", self._file.name, error.strerror)

    def settle(self) -> None:
        """Raises OSError where something is waiting, and the disk still does not take it; any thread may call."""
        with self._lock:
            self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        self.write(b"")
        self._file.close()

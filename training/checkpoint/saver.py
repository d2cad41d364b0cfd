"""All ranks write a checkpoint while the training goes on; `latest` names it when every file was read back."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import AlbefError, FailedElsewhere, Stopped
from training.checkpoint.exchange import Exchange
from training.checkpoint.layout import FORMAT, file_of, free_place, kind_of, name_of
from training.checkpoint.patience import MAY_PASS, Patience
from training.checkpoint.removal import remove_old, remove_remains, remove_unlisted
from training.checkpoint.writing import publish, write_file, write_tensors
from training.distributed import World

log = logging.getLogger(__name__)
Written = dict[str, dict[str, Any]]  # file -> bytes, sha256, tensors


@dataclass(frozen=True)
class _Content:
    """What one rank gives for a checkpoint."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    files: Mapping[str, bytes]
    record: Mapping[str, Any]
    before_publishing: Callable[[], None]


class Saver:
    """Writes checkpoints in a thread of its own, one at a time; every rank makes one, and calls `save` at the same steps.

    Args:
        folder: of the checkpoints; no other run may write there.
        keep_last: newest checkpoints that stay.
        keep_every_steps: checkpoints at its multiples stay, too.
        patience_s: seconds a full disk or a storage that is away is tried again before the save fails.
    """

    def __init__(self, folder: str, world: World, keep_last: int, keep_every_steps: int | None, patience_s: float) -> None:
        self.folder, self.world = folder, world
        self.keep_last, self.keep_every_steps, self.patience_s = keep_last, keep_every_steps, patience_s
        self._exchange = Exchange(world)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._figures: dict[str, float] = {}
        self._cleaned = False

    @property
    def failed(self) -> bool:
        """Whether this rank knows that a save failed; another may learn it a step later, so `wait` once any rank does."""
        return self._error is not None

    def figures(self) -> dict[str, float]:
        """Of the last finished save: seconds in the background, and bytes of all ranks."""
        return self._figures

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        files: Mapping[str, bytes],
        record: Mapping[str, Any],
        before_publishing: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to write the checkpoint of `step`, after waiting for the one before.

        Args:
            tensors: kind -> name -> whole tensor, of those that this rank writes; on the CPU, and nobody changes them afterwards.
            files: name -> content of further files, of rank 0.
            record: `state`, `model` and `training` as JSON values, of rank 0.
            before_publishing: what must have succeeded before `latest` names the checkpoint, tried as patiently as the rest; called on rank 0.

        Raises:
            Stopped: the one before could not be written.
        """
        self.wait()
        content = _Content(step, tensors, files, record, before_publishing)
        self._thread = threading.Thread(target=self._save, args=(content,), name=f"checkpoint {step}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what became of a save that failed: Stopped on one rank, FailedElsewhere with the same exit code on the others."""
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Return when nothing is being written any more; raises as `check` does."""
        self.close()
        self.check()

    def close(self) -> None:
        """Return when nothing is being written any more, whatever became of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _save(self, content: _Content) -> None:
        started = time.monotonic()
        patiently = Patience(self.patience_s, f"checkpoint of step {content.step} in {self.folder}")
        try:
            prepared = self._exchange.together(partial(self._prepare, content, patiently))
            written = self._exchange.together(partial(self._write, content, prepared, patiently))
            self._exchange.together(partial(self._publish, content, written, patiently))
        except FailedElsewhere as error:
            self._error = error
        except (AlbefError, OSError) as error:
            self._error = self._stopped(content.step, error)
        except Exception as error:  # a bug: the main thread raises it
            self._error = error
        else:
            size = sum(about["bytes"] for files in written for about in files.values())
            self._figures = {"checkpoint/write_s": time.monotonic() - started, "checkpoint/bytes": float(size)}

    def _prepare(self, content: _Content, patiently: Patience) -> tuple[str, list[str]]:
        """Where in the checkpoint's folder the files go, which rank 0 says, and the kinds this rank writes."""
        return patiently(partial(self._free_place, content.step)) if self.world.rank == 0 else "", [kind for kind, named in content.tensors.items() if named]

    def _free_place(self, step: int) -> str:
        if not self._cleaned:
            remove_remains(self.folder)
            self._cleaned = True
        return free_place(storage.join(self.folder, name_of(step)))

    def _write(self, content: _Content, prepared: list[tuple[str, list[str]]], patiently: Patience) -> Written:
        path, (place, _) = storage.join(self.folder, name_of(content.step)), prepared[0]
        written: Written = {}
        for kind in prepared[self.world.rank][1]:
            writers = [rank for rank, (_, kinds) in enumerate(prepared) if kind in kinds]
            file = place + file_of(kind, writers.index(self.world.rank) + 1, len(writers))
            written[file] = patiently(partial(write_tensors, storage.join(path, file), content.tensors[kind]))
        for name, data in content.files.items():
            written[place + name] = patiently(partial(write_file, storage.join(path, place + name), [data]))
        return written

    def _publish(self, content: _Content, written: list[Written], patiently: Patience) -> None:
        if self.world.rank > 0:
            return
        files = {file: about for part in written for file, about in part.items()}
        names = [(kind_of(file), name) for file, about in files.items() for name in about.get("tensors", [])]
        assert len(set(names)) == len(names), "two ranks wrote the same tensor"
        patiently(content.before_publishing)
        patiently(partial(publish, self.folder, content.step, {"format": FORMAT, **content.record, "files": files}))
        try:
            remove_unlisted(storage.join(self.folder, name_of(content.step)))
            remove_old(self.folder, self.keep_last, self.keep_every_steps)
        except (AlbefError, OSError) as error:  # the checkpoint is there; the next save removes what stayed
            log.warning("old checkpoints in %s could not be removed now: %s", self.folder, error)

    def _stopped(self, step: int, error: Exception) -> Stopped:
        tried = f" for {self.patience_s:g} s" if isinstance(error, MAY_PASS) else ""
        stopped = Stopped(
            f"the checkpoint of step {step} could not be written to {self.folder}{tried} ({error}); "
            "when the cause is gone, the same command goes on from the last verified one"
        )
        stopped.__cause__ = error
        return stopped

"""The folder that all workers of one ingest see, on disk or S3: what they are to do, what they have done, how far they are.

rows/<shard>.feather      img2dataset's Reader: the rows of each shard
journals/<shard>/         rows fetched of shards not yet published
leases/<shard>/           who works on it
progress/<shard>.json     what its worker says
stop                      asks the workers to stop
"""

from dataclasses import dataclass

from pipeline.core import storage
from pipeline.core.errors import StorageUnreachable

LOOK_EVERY_S, LOOK_EVERY_REMOTE_S = 0.2, 3.0  # a look at a folder of an object store costs a request or more


@dataclass(frozen=True)
class Spool:
    """Its folder is named by the fingerprint of the lists and settings, so what lies in it always fits."""

    folder: str

    @property
    def rows(self) -> str:
        return storage.join(self.folder, "rows")

    @property
    def progress(self) -> str:
        return storage.join(self.folder, "progress")

    @property
    def look_every_s(self) -> float:
        return LOOK_EVERY_S if storage.is_local(self.folder) else LOOK_EVERY_REMOTE_S

    def journal(self, shard: str) -> str:
        return storage.join(self.folder, "journals", shard)

    def lease(self, shard: str) -> str:
        return storage.join(self.folder, "leases", shard)

    def clear_for_a_start(self) -> None:
        """Forget what the workers of an earlier start said; journals and leases stay."""
        for folder in (self.rows, self.progress):
            storage.remove_tree(folder)
            storage.make_folder(folder)
        storage.remove(self._stop)

    def remove(self) -> None:
        storage.remove_tree(self.folder)

    def ask_to_stop(self) -> None:
        storage.write_bytes(self._stop, b"")

    def asked_to_stop(self) -> bool:
        try:
            return storage.exists(self._stop)
        except StorageUnreachable:
            return False

    @property
    def _stop(self) -> str:
        return storage.join(self.folder, "stop")

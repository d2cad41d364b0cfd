"""The folder of one ingest on the machine that runs the command; what its workers share lies in the spool (ingest/spool.py).

pair_table/, rejected.parquet, counts.json          the lists, read (counts.json last)
pair_table.tmp/                                     rows on their way into the pair table
job.json, failure.json                              what the engine is to do, and why it could not
engine.log                                          what the engine and its libraries print
rounds/<mark>/                                      the same for rows that are tried again
output_generation                                   the lease on a dataset on S3 that the last start held
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WorkFolder:
    """Its folder is named by the fingerprint of the lists and settings, so what lies in it always fits."""

    folder: Path

    @property
    def pair_table(self) -> Path:
        return self.folder / "pair_table"

    @property
    def pair_table_scratch(self) -> Path:
        return self.folder / "pair_table.tmp"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.parquet"

    @property
    def counts(self) -> Path:
        return self.folder / "counts.json"

    @property
    def job(self) -> Path:
        return self.folder / "job.json"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"

    @property
    def engine_log(self) -> Path:
        return self.folder / "engine.log"

    @property
    def output_generation(self) -> Path:
        return self.folder / "output_generation"

    @property
    def rounds(self) -> Path:
        return self.folder / "rounds"

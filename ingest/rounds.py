"""A round of fetching: the rows of one pair table become the shards of one range of numbers. The first round is the lists; later ones try again."""

import logging
from dataclasses import dataclass

from ingest import published
from ingest.config import IngestConfig
from ingest.published import PublishedShard
from ingest.work_folder import WorkFolder
from pipeline.core.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """`rows` rows of the pair table in `work_folder`; `mark` names what is kept of them while they are not published."""

    mark: str
    first_shard: int
    rows: int
    work_folder: WorkFolder

    def shards(self, samples_per_shard: int) -> range:
        """The numbers of its shards."""
        return range(self.first_shard, self.first_shard - (-self.rows // samples_per_shard))


def done_shards(config: IngestConfig, now: Round) -> dict[str, PublishedShard]:
    """The round's shards that stand whole in the dataset folder, by name.

    Raises:
        DataError: one covers another number of rows than it should, or is of no round.
    """
    first, size = now.first_shard, config.samples_per_shard
    shards = {}
    for name in filter(str.isdigit, published.names(config.output)):  # shards that ingest numbered
        if int(name) < first:
            continue
        shard = published.read(config.output, name)
        expected = max(min(size, now.rows - (int(name) - first) * size), 0)
        if shard.rows != expected or sum(shard.outcomes.values()) != expected:
            raise DataError(f"{published.outcome_path(config.output, name)}: {shard.rows} rows, expected {expected}; remove it and run again")
        if published.is_whole(config.output, shard):
            shards[name] = shard
        else:
            log.warning("shard %s: its tar or index is missing or has another size; it is fetched again", name)
    return shards

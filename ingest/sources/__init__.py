"""The formats of URL lists: a source is a file here and a line in SOURCES."""

from collections.abc import Callable, Iterator

from ingest.config import SourceConfig
from ingest.pair import Row
from ingest.sources import jsonl, parquet, tsv

SOURCES: dict[str, Callable[[SourceConfig], Iterator[Row]]] = {"parquet": parquet.read, "jsonl": jsonl.read, "tsv": tsv.read}

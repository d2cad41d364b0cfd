"""Where pairs come from: a source is a file here and a line in SOURCES."""

from ingest.sources.cc3m import ConceptualCaptions3M
from ingest.sources.cc12m import Conceptual12M
from ingest.sources.coco import CocoCaptions
from ingest.sources.csv_list import Csv
from ingest.sources.jsonl import Jsonl
from ingest.sources.karpathy import KarpathySplit
from ingest.sources.parquet import Parquet
from ingest.sources.sbu import SbuCaptions
from ingest.sources.source import Source
from ingest.sources.tsv import Tsv
from ingest.sources.visual_genome import VisualGenome
from ingest.sources.webdataset import WebDataset

SOURCES: dict[str, type[Source]] = {
    "cc3m": ConceptualCaptions3M,
    "cc12m": Conceptual12M,
    "sbu": SbuCaptions,
    "coco": CocoCaptions,
    "karpathy": KarpathySplit,
    "visual_genome": VisualGenome,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "jsonl": Jsonl,
    "csv": Csv,
    "tsv": Tsv,
}

"""What a dataset is made from: the lists and the settings that decide its bytes, and the record of them in its folder."""

import json
from typing import Any

from ingest.config import HeldOutConfig, IngestConfig
from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import manifest
from shards.foreign import sha256_of

RECORD = "ingest.json"  # in the dataset folder
# What decides which sample lies where and what its bytes are; everything else may change between two starts.
SETTINGS_OF_THE_DATA = ("samples_per_shard", "filters", "store")


def of(config: IngestConfig) -> dict[str, Any]:
    """Everything the data depends on.

    Raises:
        DataError: a list or an archive is missing.
    """
    settings = config.model_dump(mode="json", include=set(SETTINGS_OF_THE_DATA))
    return {"sources": [source.mark() for source in config.sources]} | _held_out_mark(config.held_out) | settings


def _held_out_mark(section: HeldOutConfig) -> dict[str, Any]:
    """The lists by their content, nothing without any. Block lists are no such input: they grow as long as the dataset lives."""
    lists = {kind: [sha256_of(path) for path in getattr(section, kind)] for kind in ("annotations", "ids", "phashes")}
    return {"held_out": {**lists, "splits": section.splits, "radius": section.radius}} if any(lists.values()) else {}


def claim_output(output: str, inputs: dict[str, Any]) -> None:
    """Refuse a folder with other data; otherwise write the record, which also proves before any fetch that the place can be written.

    Raises:
        DataError: the folder holds another dataset, or cannot be written.
    """
    path = storage.join(output, RECORD)
    if storage.exists(path):
        before = json.loads(storage.read_bytes(path))
        for key in {**before, **inputs}:
            if before.get(key) != inputs.get(key):
                change = {"sources": "other lists", "held_out": "other lists of held-out pictures"}.get(key, f"{key} {before.get(key)}, now {inputs.get(key)}")
                raise DataError(f"{output}: holds a dataset made from {change}; choose another output folder or take back the change")
    elif manifest.newest_number(output) is not None or any(name.endswith(".tar") for name in storage.list_files(output)):
        raise DataError(f"{output}: holds tars that ingest did not make; choose another output folder")
    storage.write_bytes(path, json.dumps(inputs, indent=1).encode())

"""What a dataset is made from: the lists and the settings that decide its bytes, and the record of them in its folder."""

import json
from typing import Any

from ingest.config import IngestConfig
from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import manifest

RECORD = "ingest.json"  # in the dataset folder
# What decides which sample lies where and what its bytes are; everything else may change between two starts.
SETTINGS_OF_THE_DATA = ("samples_per_shard", "filters", "store")


def of(config: IngestConfig) -> dict[str, Any]:
    """Everything the data depends on.

    Raises:
        DataError: a list or an archive is missing.
    """
    return {"sources": [source.mark() for source in config.sources]} | config.model_dump(mode="json", include=set(SETTINGS_OF_THE_DATA))


def claim_output(output: str, inputs: dict[str, Any]) -> None:
    """Refuse a folder with other data; otherwise write the record, which also proves before any fetch that the place can be written.

    Raises:
        DataError: the folder holds another dataset, or cannot be written.
    """
    path = storage.join(output, RECORD)
    if storage.exists(path):
        before = json.loads(storage.read_bytes(path))
        for key, value in inputs.items():
            if before.get(key) != value:
                change = "other lists" if key == "sources" else f"{key} {before.get(key)}, now {value}"
                raise DataError(f"{output}: holds a dataset made from {change}; choose another output folder or take back the change")
    elif manifest.newest_number(output) is not None or any(name.endswith(".tar") for name in storage.list_files(output)):
        raise DataError(f"{output}: holds tars that ingest did not make; choose another output folder")
    storage.write_bytes(path, json.dumps(inputs, indent=1).encode())

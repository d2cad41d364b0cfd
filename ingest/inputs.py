"""What a dataset is made from: the lists and the settings that decide its bytes, and the record of them in its folder."""

import json
from typing import Any

from ingest.config import HeldOutConfig, IngestConfig
from pipeline.core import storage
from pipeline.core.config import flatten
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
    """Write the record, which also proves before any fetch that the place can be written. By the holder of the dataset.

    Raises:
        DataError: the folder holds another dataset, or cannot be written.
    """
    check_output(output, inputs)
    storage.write_bytes(storage.join(output, RECORD), json.dumps(inputs, indent=1).encode())


def check_output(output: str, inputs: dict[str, Any]) -> None:
    """Refuse a folder with other data. A first start that went wrong leaves a record and no data: it binds nobody.

    Raises:
        DataError: the folder holds another dataset.
    """
    path = storage.join(output, RECORD)
    if storage.exists(path) and _holds_data(output):
        before = _recorded(path)
        for key in {**before, **inputs}:
            if before.get(key) != inputs.get(key):
                change = {"sources": "other lists", "held_out": "other lists of held-out pictures"}.get(key) or _change(key, before, inputs)
                raise DataError(f"{output}: holds a dataset made from {change}; choose another output folder or take back the change")
    elif not storage.exists(path) and _holds_data(output):
        raise DataError(f"{output}: holds tars that ingest did not make; choose another output folder")


def _holds_data(output: str) -> bool:
    files = [*storage.list_files(output), *storage.list_files(storage.join(output, "outcomes"))]
    return manifest.newest_number(output) is not None or any(name.endswith((".tar", ".parquet")) for name in files)


def _recorded(path: str) -> dict[str, Any]:
    try:
        record = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not the record of what ingest made the dataset from ({error}); restore it, or choose another output folder") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: not the record of what ingest made the dataset from; restore it, or choose another output folder")
    return record


def _change(key: str, before: dict[str, Any], inputs: dict[str, Any]) -> str:
    """The first setting below `key` that differs: `store.image_size 256, now 384`."""
    old, new = (flatten({key: values.get(key)}) for values in (before, inputs))
    name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"{name} {old.get(name)}, now {new.get(name)}"

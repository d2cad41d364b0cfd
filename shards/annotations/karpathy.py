"""Karpathy's caption files (dataset_coco.json, dataset_flickr30k.json): images with their captions and split."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError


@dataclass(frozen=True)
class KarpathyImage:
    """One image; `path` is below the picture folder (`filepath/filename` where the file has both)."""

    path: str
    captions: tuple[str, ...]
    image_id: int
    coco_id: int | None = None


def read_karpathy(path: str, *splits: str) -> list[KarpathyImage]:
    """The images of the splits (`train`, `restval`, `val`, `test`) in the order of the file; the raw captions.

    Raises:
        DataError: not such a file, or nothing of one of the splits in it.
    """
    try:
        record = json.loads(storage.read_bytes(path))
        entries = record["images"]
        chosen = [_image(entry, number) for number, entry in enumerate(entries) if entry["split"] in splits]
        known = {entry["split"] for entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a Karpathy caption file ({type(error).__name__}: {error}); expected images with filename, split and sentences") from error
    for split in splits:
        if split not in known:
            raise DataError(f"{path}: no image of split {split!r}; it has {', '.join(sorted(known)) or 'none at all'}")
    return chosen


def _image(entry: dict[str, Any], number: int) -> KarpathyImage:
    folder, name = entry.get("filepath", ""), entry["filename"]
    image_id = int(entry.get("cocoid", entry.get("imgid", number)))
    captions = tuple(sentence["raw"] for sentence in entry["sentences"])
    return KarpathyImage(f"{folder}/{name}" if folder else name, captions, image_id, image_id if "cocoid" in entry else None)

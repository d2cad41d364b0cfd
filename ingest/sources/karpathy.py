"""Karpathy's split files: dataset_coco.json, dataset_flickr30k.json."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ingest.pair import Row
from ingest.sources.archived import Archived, placed
from pipeline.core import storage
from shards.annotations.karpathy import KarpathyImage, read_karpathy

COCO_URL = "http://images.cocodataset.org"


class KarpathySplit(Archived):
    """The images of chosen splits with their raw sentences; those of other splits are no rows."""

    type: Literal["karpathy"] = Field(description="Karpathy's dataset_coco.json or dataset_flickr30k.json")
    splits: list[Literal["train", "restval", "val", "test"]] = Field(
        default=["train", "restval"], min_length=1, description="splits to take; of COCO, train and restval are the 113,287 pictures papers train on"
    )
    url_prefix: str | None = Field(
        default=None, description="URL of the folder the file's paths are below; default: COCO's own for pictures with a COCO id, a made-up URL for others"
    )

    def rows(self) -> Iterator[Row]:
        archives = self.opened()
        for number, image in enumerate(read_karpathy(self.path, *self.splits), start=1):
            yield placed(archives, number, image.path, self._url(image), image.captions, _ids(image))

    def _url(self, image: KarpathyImage) -> str:
        prefix = self.url_prefix or (COCO_URL if image.coco_id is not None else None)
        return self.made_up_url(image.path) if prefix is None else storage.join(prefix, image.path)


def _ids(image: KarpathyImage) -> dict[str, int]:
    if image.coco_id is not None:
        return {"coco_id": image.coco_id}
    stem = image.path.rsplit("/", 1)[-1].split(".", 1)[0]
    return {"flickr_id": int(stem)} if stem.isdecimal() and stem.isascii() else {}  # Flickr30k names its files so

"""COCO captions as its owners ship them: captions_train2014.json and its like."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ingest.archives import Archives
from ingest.pair import TEXT_LIMIT, RejectedRow, Row
from ingest.sources.archived import Archived, placed
from ingest.sources.reading import list_at, load_json


class CocoCaptions(Archived):
    """An entry of `images` is a row with all its captions; so is an annotation that belongs to none or has no text, which is rejected."""

    type: Literal["coco"] = Field(description="COCO captions: captions_train2014.json, captions_val2014.json or of 2017")

    def rows(self) -> Iterator[Row]:
        record = load_json(self.path)
        images, annotations = list_at(record, "images", self.path), list_at(record, "annotations", self.path)
        archives = self.opened()
        known = {image["id"] for image in images if _has_id(image)}
        captions = defaultdict[int, list[str]](list)
        for number, annotation in enumerate(annotations, start=1):
            reason = _unusable(annotation, known)
            if reason:
                yield RejectedRow(number, reason, str(annotation)[:TEXT_LIMIT])
            else:
                captions[annotation["image_id"]].append(annotation["caption"])
        seen = set[int]()
        for number, image in enumerate(images, start=1):
            if not _has_id(image):
                yield RejectedRow(number, "no_image_id", str(image)[:TEXT_LIMIT])
            elif image["id"] in seen:
                yield RejectedRow(number, "duplicate_image_id", str(image)[:TEXT_LIMIT])
            else:
                seen.add(image["id"])
                yield self._row(archives, number, image, captions[image["id"]])

    def _row(self, archives: Archives | None, number: int, image: dict[str, Any], captions: list[str]) -> Row:
        path = str(image.get("file_name"))
        url = image.get("coco_url") or (self.made_up_url(path) if archives else None)  # others who write this format have no coco_url
        return placed(archives, number, path, url, captions, {"coco_id": image["id"]})


def _has_id(image: Any) -> bool:
    return isinstance(image, dict) and isinstance(image.get("id"), int)


def _unusable(annotation: Any, known: set[int]) -> str | None:
    """Why an annotation is no caption of a picture."""
    if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), int):
        return "no_image_id"
    if annotation["image_id"] not in known:
        return "annotation_without_image"
    caption = annotation.get("caption")
    return None if isinstance(caption, str) and caption.strip() else "no_caption"

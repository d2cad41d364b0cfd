"""Visual Genome as its owners ship it: region_descriptions.json, image_data.json and two zips of pictures."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ingest.archives import Archives
from ingest.pair import TEXT_LIMIT, RejectedRow, Row
from ingest.sources.archived import Archived, placed
from ingest.sources.reading import load_json, open_list
from pipeline.core.errors import DataError


class VisualGenome(Archived):
    """An entry of region_descriptions is a row with the phrases of all its regions. Rejected as rows of their own are regions without a phrase,
    and pictures of image_data that no entry describes."""

    type: Literal["visual_genome"] = Field(description="Visual Genome: region_descriptions.json and image_data.json")
    path: str = Field(description="region_descriptions.json: a local path or an s3:// URL")
    images: str = Field(description="image_data.json: a local path or an s3:// URL")
    largest_regions: int | None = Field(
        default=None, ge=1, description="take only the phrases of this many regions of a picture, those of most pixels; default: all"
    )

    PLACES = Archived.PLACES | {"images"}

    def list_files(self) -> list[str]:
        return [self.path, self.images]

    def rows(self) -> Iterator[Row]:
        images = _Images(self.images)
        yield from images.rejected
        archives = self.opened()
        described, number = set[int](), 0
        for number, entry in enumerate(_entries(self.path), start=1):
            image_id = _image_id(entry, "id", "image_id")
            regions = entry.get("regions") if isinstance(entry, dict) else None
            if image_id is None or not isinstance(regions, list):
                yield RejectedRow(number, "no_image_id" if image_id is None else "no_regions", str(entry)[:TEXT_LIMIT])
            elif image_id not in images.by_id:
                yield RejectedRow(number, "regions_without_image", f"image_id {image_id}")
            else:
                described.add(image_id)
                phrased = [region for region in regions if _has_phrase(region)]
                for region in regions:
                    if not _has_phrase(region):
                        yield RejectedRow(number, "region_without_phrase", str(region)[:TEXT_LIMIT])
                yield _row(archives, number, images.by_id[image_id], self._phrases(phrased))
        for row, image_id in enumerate(sorted(images.by_id.keys() - described), start=number + 1):
            yield RejectedRow(row, "image_without_regions", f"image_id {image_id}")

    def _phrases(self, regions: list[dict[str, Any]]) -> list[str]:
        if self.largest_regions is not None and len(regions) > self.largest_regions:
            chosen = set(sorted(range(len(regions)), key=lambda n: -_pixels(regions[n]))[: self.largest_regions])
            regions = [region for n, region in enumerate(regions) if n in chosen]
        return [region["phrase"].strip() for region in regions]


class _Images:
    """image_data.json by image id."""

    def __init__(self, path: str) -> None:
        entries = load_json(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list of images, found a {type(entries).__name__}; is it image_data.json?")
        self.by_id: dict[int, dict[str, Any]] = {}
        self.rejected: list[RejectedRow] = []
        for number, entry in enumerate(entries, start=1):
            image_id = _image_id(entry, "image_id", "id")
            if image_id is None or image_id in self.by_id:
                self.rejected.append(RejectedRow(number, "no_image_id" if image_id is None else "duplicate_image_id", str(entry)[:TEXT_LIMIT]))
            else:
                self.by_id[image_id] = entry


def _entries(path: str) -> Iterator[Any]:
    """The file's entries one by one: parsed whole, its 700 MB would be gigabytes of dicts.

    Raises:
        DataError: not a JSON list.
    """
    import ijson

    found = 0
    with open_list(path) as file:
        try:
            for entry in ijson.items(file, "item", use_float=True):
                found += 1
                yield entry
        except ijson.JSONError as error:
            raise DataError(f"{path}: not valid JSON after {found} entries ({' '.join(str(error).split())[:80]}); download it again") from error
    if not found:
        raise DataError(f"{path}: expected a list of images with regions; is it region_descriptions.json?")


def _image_id(entry: Any, *keys: str) -> int | None:
    """By the first of the keys that is there: versions of the files differ in it."""
    found = next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None
    return found if isinstance(found, int) else None


def _has_phrase(region: Any) -> bool:
    return isinstance(region, dict) and isinstance(region.get("phrase"), str) and bool(region["phrase"].strip())


def _pixels(region: dict[str, Any]) -> float:
    width, height = region.get("width"), region.get("height")
    return float(width * height) if isinstance(width, int | float) and isinstance(height, int | float) else 0.0


def _row(archives: Archives | None, number: int, image: dict[str, Any], phrases: list[str]) -> Row:
    url = image.get("url")
    path = "/".join(str(url).split("/")[-2:])  # VG_100K/2370463.jpg, as in the zips
    extra = {key: image[key] for key in ("coco_id", "flickr_id") if image.get(key) is not None}
    return placed(archives, number, path, url, phrases, extra)

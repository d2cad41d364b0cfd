"""What ingest can be told."""

from typing import Literal

from pydantic import Field

from pipeline.core.config import Section


class SourceConfig(Section):
    """One list of picture URLs with captions."""

    type: Literal["parquet", "jsonl", "tsv"] = Field(description="format of the list")
    path: str = Field(description="the list: a local path or an s3:// URL")
    name: str | None = Field(None, description="what the samples of this list are called in the dataset; default: the file's name without its ending")
    url: str | int = Field("url", description="the column or key with the URL: its name, or for a tsv its position from 0")
    caption: str | int = Field("caption", description="the column or key with the caption or the list of captions: its name, or for a tsv its position from 0")
    header: bool = Field(True, description="tsv: the first row names the columns; CC3M and CC12M have none: false, and give positions")

    @property
    def label(self) -> str:
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


class IngestConfig(Section):
    """Download and shard: lists of URLs in, tars with index, manifest and outcome tables out."""

    sources: list[SourceConfig] = Field(min_length=1, description="the lists, in the order their rows get in the dataset")
    output: str = Field(description="the dataset folder to write: a local path or an s3:// URL")
    samples_per_shard: int = Field(10_000, ge=1, description="rows of the pair table a shard covers; those that fail leave it smaller")

    image_size: int = Field(256, ge=1, description="size after resizing, in pixels; resize_mode says of what")
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = Field(
        "keep_ratio", description="keep_ratio: the short side becomes image_size; keep_ratio_largest: the long side; no: pictures keep their size"
    )
    upscale: bool = Field(False, description="also enlarge pictures that are smaller than image_size")
    encode_quality: int = Field(95, ge=1, le=100, description="JPEG quality of pictures that are encoded again, 1 to 100")
    skip_reencode: bool = Field(True, description="an upright JPEG that needs no resizing keeps its bytes; it is decoded all the same, as a check")
    min_image_size: int = Field(0, ge=0, description="pictures with a shorter side, in pixels, are refused as too_small")
    max_pixels: int = Field(64_000_000, ge=1, description="pictures with more pixels are refused as too_large, by their header, before decoding")

    processes: int = Field(2, ge=1, description="worker processes; each fetches and encodes one shard at a time")
    threads: int = Field(32, ge=1, description="fetches in flight in each process")
    connections_per_host: int = Field(8, ge=1, description="fetches in flight to one host in each process")
    timeout_s: float = Field(20.0, gt=0, description="seconds one URL may take in all, redirects and body included")
    max_bytes: int = Field(20 * 2**20, ge=1, description="bytes one body may have")
    max_redirects: int = Field(5, ge=0, description="redirects followed for one URL; each is checked like the first address")
    user_agent: str = Field("albef-ingest/0.1", min_length=1, description="how the crawler names itself to servers; add where its operator can be reached")
    opt_out_directives: list[str] = Field(
        ["noai", "noimageai", "noindex", "noimageindex", "none"],
        description="X-Robots-Tag words, in lower case, that keep a picture out (opted_out)",
    )
    allow_loopback: bool = Field(False, description="let pictures come from this machine (127.0.0.0/8 and ::1), for demos and tests")
    success_floor: float = Field(0.0, ge=0, le=1, description="share of pictures, 0 to 1, that must succeed; below it ingest publishes and exits with 3")

"""What ingest can be told."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Literal, Union
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator

from ingest.sources import SOURCES
from ingest.sources.source import Source
from ingest.store import StoreConfig as StoreConfig
from pipeline.core.config import Section

if TYPE_CHECKING:
    AnySource = Source
else:
    AnySource = Annotated[Union[tuple(SOURCES.values())], Field(discriminator="type")]  # noqa: UP007  # made from the table

HEADER_TEXT = r"^[\x20-\x7e]+$"


def _a_proxy(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError("expected http://host:port or https://host:port")
    return url


class FetchConfig(Section):
    """How the web is asked: bounds, politeness, and what a server may say about it."""

    timeout_s: float = Field(default=20.0, gt=0, description="seconds one URL may take in all: attempts, redirects, waits between them and the body")
    max_bytes: int = Field(default=20 * 2**20, ge=1, description="bytes one body may have")
    max_redirects: int = Field(default=5, ge=0, description="redirects followed for one URL; each is checked like the first address")
    attempts: int = Field(default=3, ge=1, description="how often a URL is asked for when what went wrong may pass (timeouts, connections, 429, 5xx)")
    backoff_s: float = Field(default=0.5, ge=0, description="seconds before the second attempt, doubled for each further one, times a random 0.5 to 1.5")
    ports: list[int] = Field(
        default=[80, 443, 8080, 8443],
        description="ports that are asked; others are refused (blocked_address); allow_loopback opens all, since demos choose theirs",
    )
    outage_rows: int = Field(
        default=200,
        ge=0,
        description="rows in a row without any answer, over at least ten hosts or all there are, after which the network counts as gone and ingest stops "
        "resumably (exit code 4) without writing them down as failed; 0: never",
    )
    connections_per_host: int = Field(default=8, ge=1, description="fetches in flight to one host in each process")
    requests_per_second_per_host: float | None = Field(default=None, gt=0, description="upper bound in each process; default: none")
    user_agent: str = Field(
        default="albef-ingest/0.1",
        pattern=HEADER_TEXT,
        description="how the crawler names itself to servers; what is before the slash is its name in robots.txt and X-Robots-Tag",
    )
    contact: str | None = Field(
        default=None,
        pattern=HEADER_TEXT,
        description="where its operator can be reached, a URL or an e-mail address; becomes part of the user agent",
    )
    robots_txt: bool = Field(
        default=False,
        description="ask each host for robots.txt, once a process and day, and obey it (robots_txt); its Crawl-delay, if shorter than timeout_s, is kept too",
    )
    opt_out_directives: list[str] = Field(
        default=["noai", "noimageai", "noindex", "noimageindex", "none", "noml", "unavailable_after"],
        description="X-Robots-Tag words, in lower case, that keep a picture out (opted_out); unavailable_after does once its date has passed",
    )
    tdm_reservation: bool = Field(default=True, description="obey the header TDM-Reservation: 1 (opted_out)")
    proxy: Annotated[str, AfterValidator(_a_proxy)] | None = Field(
        default=None,
        description="an HTTP proxy all requests go through, such as http://host:3128; names are resolved and checked here first, but it resolves them again",
    )
    ca_file: str | None = Field(default=None, description="further certificates to trust, in PEM, such as those of a proxy")
    allow_loopback: bool = Field(default=False, description="let pictures come from this machine (127.0.0.0/8 and ::1), for demos and tests")


class EngineConfig(Section):
    """Who does the work."""

    distributor: Literal["multiprocessing", "pyspark", "ray"] = Field(
        default="multiprocessing", description="img2dataset's way to spread shards: processes here, a Spark session or a Ray cluster"
    )
    cluster: str | None = Field(default=None, description="pyspark: the master's URL; ray: the address of a cluster; default: workers on this machine")
    processes: int = Field(default=2, ge=1, description="workers on this machine; each fetches and encodes one shard at a time")
    concurrency: int = Field(default=32, ge=1, description="fetches in flight in each process")
    spool: str | None = Field(
        default=None,
        description="folder that all workers see, for what is not published yet; default: the run folder, or with pyspark and ray one in the output",
    )
    storage_patience_s: float = Field(default=60.0, ge=0, description="seconds to try again while the storage does not answer, before ingest stops resumably")
    lease_s: float = Field(default=30.0, gt=0, description="seconds without a sign of life after which another worker may take a shard over")


class CaptionConfig(Section):
    """Which captions are kept: lengths of the normalised caption, ends included. A row that keeps none is rejected."""

    min_words: int = Field(default=1, ge=1, description="captions with fewer words, as white space parts them, are dropped (too_few_words)")
    max_words: int | None = Field(default=None, ge=1, description="captions with more words are dropped (too_many_words)")
    min_characters: int = Field(default=1, ge=1, description="captions with fewer characters are dropped (too_few_characters)")
    max_characters: int | None = Field(default=None, ge=1, description="captions with more characters are dropped (too_many_characters)")
    max_repeats: int | None = Field(
        default=None, ge=1, description="a caption that more rows of all lists together have, to the letter, is dropped from each of them (repeated_caption)"
    )


class ColumnFilter(Section):
    """What a row's value in a further column of its list must be, such as a CLIP score, an NSFW mark or a language."""

    column: str = Field(description="the column's name")
    min: float | None = Field(default=None, description="rows with a smaller number are rejected (<column>_too_low)")
    max: float | None = Field(default=None, description="rows with a larger number are rejected (<column>_too_high)")
    any_of: list[str] | None = Field(default=None, min_length=1, description="rows with another value, written as text, are rejected (<column>_unwanted)")
    missing: Literal["keep", "drop"] = Field(
        default="keep", description="rows without the column, or with null, NaN or nothing in it: kept, or rejected (<column>_missing)"
    )


class FilterConfig(Section):
    """Which rows of the lists become pictures of the dataset; every row that does not is in rejected.parquet with its reason."""

    captions: CaptionConfig = Field(default=CaptionConfig(), description="which captions are kept")
    columns: list[ColumnFilter] = Field(default=[], description="what further columns must say, in the order they are asked")


class HeldOutConfig(Section):
    """Pictures a benchmark is scored on, which must not be in the dataset (held_out): by their ids in the lists and URLs, and by their looks."""

    annotations: list[str] = Field(default=[], description="Karpathy's JSON files, such as dataset_coco.json and dataset_flickr30k.json, local or s3://")
    splits: list[str] = Field(default=["val", "test"], min_length=1, description="the splits of the annotations that are held out")
    ids: list[str] = Field(default=[], description="text, csv or parquet lists with an id an entry: coco:<number> or flickr:<number>")
    phashes: list[str] = Field(default=[], description="perceptual hashes, as `albef ingest phash` makes them of your copies: a parquet, or a hash a line")
    radius: int = Field(default=4, ge=0, le=16, description="bits of the 64 by which a picture's hash may differ from a held-out one")


class IngestConfig(Section):
    """Download and shard: lists of URLs in, tars with index, manifest and outcome tables out."""

    sources: list[AnySource] = Field(min_length=1, description="the lists, in the order their rows get in the dataset")
    output: str = Field(description="the dataset folder to write: a local path or an s3:// URL")
    samples_per_shard: int = Field(default=10_000, ge=1, description="rows of the pair table a shard covers; those that fail leave it smaller")
    success_floor: float = Field(
        default=0.0, ge=0, le=1, description="share of pictures, 0 to 1, that must succeed; below it ingest publishes and exits with 3"
    )
    filters: FilterConfig = Field(default=FilterConfig(), description="which rows of the lists become pictures")
    blocked: list[str] = Field(
        default=[],
        description="text, csv or parquet lists, local or s3://, with an entry a line: a URL, a uid, a sha256 or a phash; those are not fetched or not stored",
    )
    held_out: HeldOutConfig = Field(default=HeldOutConfig(), description="benchmark pictures that must not be in the dataset")
    store: StoreConfig = Field(default=StoreConfig(), description="which pictures are kept, and how they are stored")
    fetch: FetchConfig = Field(default=FetchConfig(), description="how the web is asked")
    engine: EngineConfig = Field(default=EngineConfig(), description="who does the work")

    @field_validator("sources")
    @classmethod
    def _labels_differ(cls, sources: list[Source]) -> list[Source]:
        label, number = Counter(source.label for source in sources).most_common(1)[0]
        if number > 1:
            raise ValueError(f"{number} of them are called {label!r} in the dataset; give each a `name` of its own")
        return sources

"""The benchmarks `http`, `https` and `https-one-authority`: the same pictures from the same server through `albef ingest` and plain img2dataset.

Measured are CPU seconds of the whole process tree; the server, a process beside it, does not count. What both spend before the first picture is
measured by a run with one picture and taken off. Both must give the same samples of the same sizes, or there is no result.
"""

import io
import json
import logging
import os
import shutil
import ssl
import statistics
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.app import picture_server
from pipeline.app.bench.corpus import DISTINCT, Corpus, corpus
from pipeline.app.bench.pictures import SHORT_SIDE
from pipeline.app.bench.process_tree import cpu_seconds
from pipeline.app.bench.row import BenchRow, compared
from pipeline.core.errors import AlbefError, ConfigError

log = logging.getLogger(__name__)

PROCESSES = 2
QUALITY = 95
PEER_THREADS = (16, 32)  # img2dataset is asked with each; the better one is the peer
SHARDS = 10  # as many as both need to keep all processes at work
COMPARED_PICTURES = 200


@dataclass(frozen=True)
class Side:
    """One of the two: the command that turns a list into shards, its environment, and the seconds it took in each round."""

    name: str
    cpu_s: list[float] = field(default_factory=list)
    start_up_s: list[float] = field(default_factory=list)

    def pictures_per_cpu_s(self, pictures: int) -> list[float]:
        return [(pictures - 1) / (whole - start) for whole, start in zip(self.cpu_s, self.start_up_s, strict=True)]


class Crawler(Protocol):
    """Fetch the URLs of a list into a folder of tars; returns CPU seconds."""

    def __call__(self, urls: Path, number: int, output: Path) -> float: ...


def http(work: Path, pictures: int, rounds: int) -> list[BenchRow]:
    """The picture server without encryption."""
    made = corpus(work, DISTINCT)
    with picture_server.serving(made.folder, port=0) as base:
        return _compare("http", made, base, work, pictures, rounds, ca_file=None)


def https(work: Path, pictures: int, rounds: int) -> list[BenchRow]:
    """The picture server with a certificate of an authority made for it, which both trust beside the system's, as a crawler of the web must."""
    return _https("https", work, pictures, rounds, system=True)


def https_one_authority(work: Path, pictures: int, rounds: int) -> list[BenchRow]:
    """As `https`, but img2dataset knows of no other authority, which spares it reading the system's for each picture."""
    return _https("https-one-authority", work, pictures, rounds, system=False)


def _https(case: str, work: Path, pictures: int, rounds: int, system: bool) -> list[BenchRow]:
    made = corpus(work, DISTINCT)
    with _certificates(work / "tls", system) as (server_pem, ca_pem), picture_server.serving(made.folder, port=0, certificate=server_pem) as base:
        return _compare(case, made, base, work, pictures, rounds, ca_file=ca_pem)


def _compare(case: str, made: Corpus, base: str, work: Path, pictures: int, rounds: int, ca_file: Path | None) -> list[BenchRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = {number: work / f"{case}-{number}.parquet" for number in (pictures, max(pictures // 5, 1), 1)}
    for number, path in lists.items():
        captions = [f"picture {n} of the benchmark" for n in range(number)]
        pq.write_table(pa.table({"url": list(made.urls(base, number)), "caption": captions}), path)
    threads = min(PEER_THREADS, key=lambda number: _img2dataset(lists[max(pictures // 5, 1)], pictures // 5, work / "peer", number, ca_file))
    log.info("%s: img2dataset is better with %d threads a process", case, threads)

    ours, peer = Side("albef"), Side("img2dataset")
    for number in range(1, rounds + 1):
        ours.start_up_s.append(_albef(lists[1], 1, work / "start-up", ca_file))
        peer.start_up_s.append(_img2dataset(lists[1], 1, work / "start-up", threads, ca_file))
        ours.cpu_s.append(_albef(lists[pictures], pictures, work / "ours", ca_file))
        peer.cpu_s.append(_img2dataset(lists[pictures], pictures, work / "peer", threads, ca_file))
        log.info("%s: round %d of %d: %s %.1f CPU s, %s %.1f", case, number, rounds, ours.name, ours.cpu_s[-1], peer.name, peer.cpu_s[-1])
    same = alike(_samples(work / "ours"), _samples(work / "peer"), pictures)
    for folder in ("ours", "peer", "start-up"):
        shutil.rmtree(work / folder)

    note = (
        f"{pictures} URLs of {len(made.names)} pictures of {made.bytes / len(made.names) / 1000:.0f} kB on one loopback host, {PROCESSES} processes each, "
        f"img2dataset with {threads} threads a process (the better of {' and '.join(map(str, PEER_THREADS))}); without start-up; {same}"
    )
    started = f"CPU seconds of a run with one picture, {PROCESSES} processes each"
    name = "img2dataset 1.47"
    return [
        compared(case, "pictures/CPU-s", ours.pictures_per_cpu_s(pictures), peer.pictures_per_cpu_s(pictures), name, note),
        compared(f"{case} start-up", "CPU-s", ours.start_up_s, peer.start_up_s, name, started, more_is_better=False),
    ]


def _albef(urls: Path, number: int, output: Path, ca_file: Path | None) -> float:
    import yaml

    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    engine = {"processes": PROCESSES}
    # One host stands for the many of the web: with a bound per host the lanes would idle, which costs nothing but wall time.
    fetch = {"allow_loopback": True, "connections_per_host": 32, "ca_file": str(ca_file) if ca_file is not None else None}
    store = {"image_size": SHORT_SIDE, "resize_mode": "keep_ratio", "upscale": False, "encode_quality": QUALITY}
    source = {"type": "parquet", "path": str(urls.absolute()), "name": "web"}
    ingest = {"sources": [source], "output": str((output / "dataset").absolute()), "samples_per_shard": _samples_per_shard(number)}
    config = output / "albef.yaml"
    settings = {"run": {"folder": str((output / "run").absolute())}, "ingest": {**ingest, "engine": engine, "fetch": fetch, "store": store}}
    config.write_text(yaml.safe_dump(settings))
    return cpu_seconds([sys.executable, "-m", "pipeline.app", "ingest", str(config.absolute())], os.environ, output)


def _img2dataset(urls: Path, number: int, output: Path, threads: int, ca_file: Path | None) -> float:
    shutil.rmtree(output, ignore_errors=True)
    options = {
        "url_list": urls.absolute(), "input_format": "parquet", "url_col": "url", "caption_col": "caption", "output_format": "webdataset",
        "output_folder": (output / "dataset").absolute(), "processes_count": PROCESSES, "thread_count": threads,
        "number_sample_per_shard": _samples_per_shard(number), "image_size": SHORT_SIDE, "resize_mode": "keep_ratio", "resize_only_if_bigger": True,
        "encode_quality": QUALITY, "extract_exif": False,
    }  # fmt: skip
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}  # it asks a server for its newest version otherwise
    if ca_file is not None:
        environment["SSL_CERT_FILE"] = str(ca_file.absolute())
    program = "from img2dataset.main import main; main()"
    return cpu_seconds([sys.executable, "-c", program, *(f"--{name}={value}" for name, value in options.items())], environment, output)


def _samples_per_shard(number: int) -> int:
    return -(-number // SHARDS)


@dataclass(frozen=True)
class Stored:
    width: int
    height: int
    jpeg: bytes


def _samples(output: Path) -> dict[str, Stored]:
    """The stored pictures by URL."""
    return {record["url"]: Stored(record["width"], record["height"], jpeg) for record, jpeg in _read_tars(output / "dataset")}


def _read_tars(folder: Path) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    for path in sorted(folder.glob("*.tar")):
        jpegs, records = {}, {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                file = tar.extractfile(member)
                assert file is not None
                if kind == "jpg":
                    jpegs[key] = file.read()
                elif kind == "json":
                    records[key] = json.loads(file.read())
        yield from ((records[key], jpeg) for key, jpeg in jpegs.items())


def alike(ours: Mapping[str, Stored], peer: Mapping[str, Stored], pictures: int) -> str:
    """How alike the two outputs are.

    Raises:
        AlbefError: samples are missing, or have other sizes.
    """
    if not len(ours) == len(peer) == pictures or ours.keys() != peer.keys():
        raise AlbefError(f"of {pictures} pictures albef stored {len(ours)} and img2dataset {len(peer)}, {len(ours.keys() & peer.keys())} of them the same")
    others = [url for url, one in ours.items() if (one.width, one.height) != (peer[url].width, peer[url].height)]
    if others:
        raise AlbefError(f"{len(others)} pictures have another size than img2dataset's, such as {others[0]}: {ours[others[0]]!r:.60}, {peer[others[0]]!r:.60}")
    some = list(ours)[:: max(1, len(ours) // COMPARED_PICTURES)]
    difference = statistics.fmean(_difference(ours[url].jpeg, peer[url].jpeg) for url in some)
    sizes = [statistics.fmean(len(stored.jpeg) for stored in side.values()) / 1000 for side in (ours, peer)]
    return f"same samples and sizes; {sizes[0]:.1f} and {sizes[1]:.1f} kB a picture, mean absolute pixel difference {difference:.2f} of 255 over {len(some)}"


def _difference(one: bytes, other: bytes) -> float:
    import numpy as np
    from PIL import Image

    first, second = (np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.int16) for jpeg in (one, other))
    return float(np.abs(first - second).mean())


@contextmanager
def _certificates(folder: Path, system: bool) -> Iterator[tuple[Path, Path]]:
    """A certificate for the loopback host with its key, and those to trust: of the authority that signed it, and of the system's."""
    try:
        import trustme
    except ImportError as error:
        raise ConfigError("the case https needs trustme, which is not installed; pip install -e '.[dev]', or leave it out with --cases") from error
    folder.mkdir(parents=True, exist_ok=True)
    authority, server_pem, ca_pem = trustme.CA(), folder / "server.pem", folder / "ca.pem"
    authority.issue_cert(picture_server.HOST).private_key_and_cert_chain_pem.write_to_path(str(server_pem))
    others = ssl.create_default_context().get_ca_certs(binary_form=True) if system else []
    ca_pem.write_text(authority.cert_pem.bytes().decode() + "".join(ssl.DER_cert_to_PEM_cert(other) for other in others))
    try:
        yield server_pem, ca_pem
    finally:
        shutil.rmtree(folder)

"""1,000 tars, each damaged in one way: whichever way they come in, every sample is delivered as it was or named with a reason."""

import contextlib
import io
import logging
import random
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import webdataset
from typer.testing import CliRunner

from shards import dataset as dataset_module
from shards import index, layout, manifest, tar, writer
from shards.cli import app
from shards.dataset import DamagedSample, Dataset, Sample
from shards.loader import ShardLoader
from shards.pixels.transforms import PretrainTransform

from .conftest import samples

TARS = [100, pytest.param(1000, marks=pytest.mark.slow)]
SHARD_SAMPLES = 8
PATIENCE_S = 10  # a tar of 30 kB that takes longer hangs

Mutation = Callable[[bytes, random.Random], bytes]


def blocks(data: bytes) -> list[int]:
    """Where headers start."""
    return [member.start for member in tar.members(memoryview(data), "x.tar")]


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The members, each with header and padding, and the end mark."""
    found = list(tar.members(memoryview(data), "x.tar"))
    return [data[member.start : member.end] for member in found], data[found[-1].end :]


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def flip_in_a_header(data: bytes, rng: random.Random) -> bytes:
    return flipped(data, rng.choice(blocks(data)) + rng.randrange(tar.BLOCK), rng.randrange(8))


def flip_in_a_body(data: bytes, rng: random.Random) -> bytes:
    member = rng.choice(list(tar.members(memoryview(data), "x.tar")))
    return flipped(data, member.data + rng.randrange(member.size), rng.randrange(8))


def cut_anywhere(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def cut_at_a_member(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice(blocks(data))]


def swap_members(data: bytes, rng: random.Random) -> bytes:
    found, end = split(data)
    one, other = rng.sample(range(len(found)), 2)
    found[one], found[other] = found[other], found[one]
    return b"".join(found) + end


def repeat_a_member(data: bytes, rng: random.Random) -> bytes:
    """Right after itself, or elsewhere."""
    found, end = split(data)
    found.insert(rng.randrange(len(found) + 1), rng.choice(found))
    return b"".join(found) + end


def repeat_a_sample(data: bytes, rng: random.Random) -> bytes:
    found, end = split(data)
    sample = 3 * rng.randrange(len(found) // 3)
    place = 3 * rng.randrange(len(found) // 3 + 1)
    return b"".join([*found[:place], *found[sample : sample + 3], *found[place:]]) + end


def zero_blocks(data: bytes, rng: random.Random) -> bytes:
    """Over a header or over what happens to lie there."""
    start = rng.choice(blocks(data)) if rng.random() < 0.5 else tar.BLOCK * rng.randrange(len(data) // tar.BLOCK)
    length = tar.BLOCK * rng.randint(1, 4)
    return data[:start] + bytes(length) + data[start + length :]


def lose_a_member(data: bytes, rng: random.Random) -> bytes:
    found, end = split(data)
    del found[rng.randrange(len(found))]
    return b"".join(found) + end


def scramble_a_stretch(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.randint(1, 3000)
    return (data[:start] + rng.randbytes(length) + data[start + length :])[: len(data)]


MUTATIONS: list[Mutation] = [
    flip_in_a_header, flip_in_a_body, cut_anywhere, cut_at_a_member, swap_members, repeat_a_member, repeat_a_sample, zero_blocks, lose_a_member,
    scramble_a_stretch,
]  # fmt: skip


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Sample]]:
    """A dataset of one healthy shard and one that will be damaged, and what every sample of the latter is."""
    folder = tmp_path / "set"
    entries = [writer.write_shard(layout.tar_path(str(folder), f"{shard:05d}"), samples(shard, SHARD_SAMPLES)) for shard in (0, 1)]
    manifest.publish(str(folder), entries, {}, {})
    dataset = Dataset.open(str(folder))
    read = [dataset.read(number) for number in range(SHARD_SAMPLES, 2 * SHARD_SAMPLES)]
    return folder, {sample.key: sample for sample in read}


def mutated(whole: bytes, number: int) -> bytes:
    mutate = MUTATIONS[number % len(MUTATIONS)]
    return mutate(whole, random.Random(number))


def one_line(text: str) -> bool:
    return "\n" not in text.strip()


@pytest.mark.parametrize("tars", TARS)
def test_read_by_the_index_made_before_every_sample_is_delivered_or_in_the_quarantine(
    published: tuple[Path, dict[str, Sample]], monkeypatch: pytest.MonkeyPatch, tars: int
) -> None:
    folder, originals = published
    monkeypatch.setattr(dataset_module, "PAUSE_BEFORE_LOST_S", 0.0)
    path = folder / "00001.tar"
    whole = path.read_bytes()
    outcomes = {"delivered": 0, "quarantined": 0}
    for number in range(tars):
        path.write_bytes(mutated(whole, number))
        started = time.monotonic()
        dataset = Dataset.open(str(folder))
        read = {}
        for sample in range(dataset.num_samples):
            with contextlib.suppress(DamagedSample):
                read[sample] = dataset.read(sample)
        loader = ShardLoader(
            dataset, transform=PretrainTransform(16), collate=lambda items: [item.sample for item in items],
            global_batch_size=4, micro_batch_size=4, epoch_over="images",
        )  # fmt: skip
        delivered = {sample for batches, _ in islice(loader.from_position(loader.start()), loader.steps_per_epoch) for sample in batches[0]}
        listed = {sample for entry in loader.quarantine for sample in range(entry["sample"], entry["sample"] + entry["samples"])}
        assert time.monotonic() - started < PATIENCE_S, number
        assert delivered | listed == set(range(dataset.num_samples)), number
        assert not delivered & listed, number
        assert set(read) >= delivered, number
        assert all(one_line(entry["reason"]) for entry in loader.quarantine), number
        for sample, found in read.items():
            if sample >= SHARD_SAMPLES:
                assert found == originals[found.key], number
        outcomes["delivered"] += len(delivered)
        outcomes["quarantined"] += len(listed)
    assert sum(outcomes.values()) == 2 * SHARD_SAMPLES * tars
    assert min(outcomes.values()) > tars  # both ends are reached


@pytest.mark.parametrize("tars", TARS)
def test_indexed_anew_every_sample_is_delivered_or_named(
    published: tuple[Path, dict[str, Sample]], tmp_path: Path, caplog: pytest.LogCaptureFixture, tars: int
) -> None:
    """`albef shards index` takes what it finds; it says which tars are not what an earlier manifest had, so that not even a changed pixel is silent."""
    folder, originals = published
    whole = (folder / "00001.tar").read_bytes()
    refused = 0
    for number in range(tars):
        data, place = mutated(whole, number), tmp_path / "anew"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        (place / "00001.tar").write_bytes(data)
        caplog.clear()
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            result = CliRunner().invoke(app, ["index", str(place)])
        assert time.monotonic() - started < PATIENCE_S, number
        if result.exception is not None:
            assert getattr(result.exception, "exit_code", None) == 2, (number, result.exception)
            assert re.match(r"^[^\n]*00001\.tar: [^\n]*$", str(result.exception)), number
            refused += 1
            continue
        assert ("not the bytes manifest 1 has" in caplog.text) == (data != whole), number
        dataset = Dataset.open(str(place))
        delivered, damaged = {}, set()
        for row in range(SHARD_SAMPLES, dataset.num_samples):
            try:
                sample = dataset.read(row)
                delivered[sample.key] = sample
            except DamagedSample as damage:
                damaged.add(damage.key)
        assert len(delivered) + len(damaged) == dataset.num_samples - SHARD_SAMPLES, number
        missing = [key for key in originals if key not in delivered and key not in damaged]
        changed = [key for key, sample in delivered.items() if originals.get(key) != sample]
        outcomes = dataset.manifest.outcomes
        assert outcomes["success"] == dataset.num_samples
        if missing:  # every one that is not delivered was named, is counted, or was taken out of the tar as a whole
            named = {key for key in missing if f" {key} at byte" in caplog.text}
            assert len(named) + outcomes["without_image"] >= len(missing), (number, missing, caplog.text)
        assert all(holds(data, key, delivered[key]) for key in changed), number
    assert tars // 4 < refused < tars


def holds(data: bytes, key: str, sample: Sample) -> bool:
    """Whether a changed sample is what the tar itself now has under this key, by another reader."""
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return any(member.name == f"{key}.jpg" and file.extractfile(member).read() == sample.image for member in file)  # type: ignore[union-attr]


def test_verify_names_the_tar_of_every_mutation(published: tuple[Path, dict[str, Sample]]) -> None:
    from shards.verify import verify

    folder, _ = published
    whole = (folder / "00001.tar").read_bytes()
    for number in range(200):
        data = mutated(whole, number)
        (folder / "00001.tar").write_bytes(data)
        found = verify(str(folder))
        assert bool(found) == (data != whole), number
        assert all("00001" in line and one_line(line) for line in found), number


def member_files(folder: Path) -> list[tuple[str, bytes]]:
    """Odd but healthy: long names, umlauts, several dots, other suffixes."""
    long = "folder-" + "x" * 90
    return [
        (f"{folder.name}/{name}", body)
        for name, body in [
            ("0001.jpg", b"one"), ("0001.txt", b"first"), ("0001.json", b'{"captions": ["first", "second"]}'), ("0001.cls", b"7"),
            (f"{long}/0002.png", b"two"), (f"{long}/0002.txt", "schön".encode()), ("ü.webp", b"three"), ("ü.txt", b"third"),
            ("v1.photo.final.jpg", b"its suffix is photo.final.jpg"), ("v1.jpeg", b"four"), ("lonely.txt", b"no picture"),
        ]
    ]  # fmt: skip


def by_python(format_: int) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        with tarfile.open(path, "w", format=format_) as file:
            for name, body in member_files(folder):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(body), 1.5 if format_ == tarfile.PAX_FORMAT else 1
                file.addfile(info, io.BytesIO(body))

    return write


def by_gnu_tar(*options: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, path: Path) -> None:
        for name, body in member_files(folder):
            (folder.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.parent / name).write_bytes(body)
        subprocess.run(["tar", "-C", str(folder.parent), *options, "-cf", str(path), *dict(member_files(folder))], check=True)

    return write


def by_webdataset(folder: Path, path: Path) -> None:
    with webdataset.TarWriter(str(path)) as sink:
        for name, body in member_files(folder):
            key, _, suffix = name.rpartition("/")[2].partition(".")
            sink.write({"__key__": f"{name.rpartition('/')[0]}/{key}", suffix: body})


WRITERS = {
    "python gnu": by_python(tarfile.GNU_FORMAT), "python pax": by_python(tarfile.PAX_FORMAT), "python ustar": by_python(tarfile.USTAR_FORMAT),
    "gnu": by_gnu_tar("--format=gnu"), "posix": by_gnu_tar("--format=posix"), "ustar": by_gnu_tar("--format=ustar"),
    "large records": by_gnu_tar("-b", "64"), "webdataset": by_webdataset,
}  # fmt: skip


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_healthy_tars_of_every_writer_read_as_webdataset_reads_them(tmp_path: Path, write: Callable[[Path, Path], None]) -> None:
    (tmp_path / "members").mkdir()
    (tmp_path / "set").mkdir()
    write(tmp_path / "members", tmp_path / "set" / "x.tar")
    assert CliRunner().invoke(app, ["index", str(tmp_path / "set")]).exit_code == 0
    dataset = Dataset.open(str(tmp_path / "set"))
    ours = {sample.key: sample.image for sample in map(dataset.read, range(dataset.num_samples))}
    raw = webdataset.WebDataset(str(tmp_path / "set" / "x.tar"), shardshuffle=False)
    theirs: dict[str, bytes] = {}
    for sample in raw:
        for suffix in set(tar.IMAGE_SUFFIXES) & set(sample):
            theirs[sample["__key__"]] = sample[suffix]
    assert ours == theirs
    assert len(ours) == 4
    assert index.scan(str(tmp_path / "set" / "x.tar")).index.without_image == dataset.manifest.outcomes["without_image"]

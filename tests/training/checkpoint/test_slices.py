"""Slices of tensors: equal to the whole ones, without holding them, and damage is named."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import DataError
from training.checkpoint.slices import Slices
from training.checkpoint.writing import DTYPES, encoded, write_tensors

SHAPES = {"scalar": (), "one": (1,), "none": (0, 3), "matrix": (7, 11), "cube": (3, 5, 2)}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("slices") / "student.safetensors"
    safetensors.torch.save_file(tensors(), path, metadata={"written": "by the library"})
    return str(path)


def of(path: Path, named: dict[str, Tensor]) -> Slices:
    storage.write_bytes(str(path), b"".join(encoded(named)))
    return Slices([str(path)])


@given(data=st.data())
def test_any_range_equals_that_of_the_whole_tensor(file: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(SHAPES)))
    flat = tensors()[name].reshape(-1)
    start = data.draw(st.integers(0, len(flat)))
    length = data.draw(st.integers(0, len(flat) - start))
    assert torch.equal(Slices([file]).read(name, start, length), flat[start : start + length])


def test_names_and_shapes_are_those_of_all_files(tmp_path: Path, file: str) -> None:
    of(tmp_path / "more.safetensors", {"more": torch.zeros(2, 2)})
    slices = Slices([file, str(tmp_path / "more.safetensors")])
    assert {name: slices.shape(name) for name in slices.names()} == {**SHAPES, "more": (2, 2)}
    assert slices.read("more", 1, 3).tolist() == [0.0, 0.0, 0.0]


@given(seed=st.integers(0, 99), names=st.lists(st.text(min_size=1, max_size=5), max_size=12, unique=True))
def test_our_stream_is_byte_for_byte_what_the_library_writes(seed: int, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtypes = list(DTYPES)
    named = {name: torch.randint(0, 2, (seed % 4, place), generator=generator).to(dtypes[(place * seed) % 10]) for place, name in enumerate(names)}
    assert b"".join(encoded(named)) == safetensors.torch.save(named)


def test_views_and_tied_tensors_are_written_as_they_look() -> None:
    table = torch.arange(12.0).reshape(3, 4)
    written = safetensors.torch.load(b"".join(encoded({"table": table, "tied": table, "transposed": table.T, "row": table[1]})))
    assert all(torch.equal(written[name], tensor) for name, tensor in {"table": table, "tied": table, "transposed": table.T, "row": table[1]}.items())


@pytest.mark.parametrize(
    ("name", "start", "length", "complaint"),
    [
        ("absent", 0, 1, r"student\.safetensors: no tensor absent"),
        ("weight", 3, 2, r"student\.safetensors: weight has shape \(2, 2\), without elements 3 to 5"),
        ("weight", -1, 2, r"student\.safetensors: weight has shape \(2, 2\), without elements -1 to 1"),
        ("half", 0, 1, r"student\.safetensors: half is of type BF16, expected F32"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, start: int, length: int, complaint: str) -> None:
    slices = of(tmp_path / "student.safetensors", {"weight": torch.zeros(2, 2), "half": torch.zeros(2, dtype=torch.bfloat16)})
    with pytest.raises(DataError, match=complaint):
        slices.read(name, start, length)


@pytest.mark.parametrize("data", [b"", b"\0", (2**60).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"nope", (2).to_bytes(8, "little") + b"[]"])
def test_a_damaged_header_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "student.safetensors").write_bytes(data)
    with pytest.raises(DataError, match=r"student\.safetensors: not a readable safetensors file"):
        Slices([str(tmp_path / "student.safetensors")]).names()


def test_a_file_that_is_cut_short_is_named_with_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    slices = of(path, {"first": torch.zeros(8), "second": torch.zeros(8)})
    path.write_bytes(path.read_bytes()[:-4])
    assert slices.read("first", 0, 8).tolist() == [0.0] * 8
    with pytest.raises(DataError, match=r"student\.safetensors: ends within second"):
        slices.read("second", 0, 8)


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    named = {f"{'layer' * 40}.{number}": torch.full((1,), float(number)) for number in range(2000)}
    slices = of(tmp_path / "student.safetensors", named)
    assert [slices.read(name, 0, 1).item() for name in list(named)[::500]] == [0.0, 500.0, 1000.0, 1500.0]


MEMORY = """
    import json, resource, sys
    import torch
    from training.checkpoint.slices import Slices
    from training.checkpoint.sums import check_file

    path, bytes_in_file, sha256 = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    slices = Slices([path])
    slices.read("matrix", 0, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_file(path, {"bytes": bytes_in_file, "sha256": sha256})
    total = sum(slices.read("matrix", start, 1 << 20).double().sum().item() for start in range(0, 50 << 20, 1 << 20))
    print(json.dumps({"grown_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, "total": total}))
"""


@pytest.mark.slow
def test_two_hundred_megabytes_are_verified_and_read_in_the_memory_of_a_few_slices(tmp_path: Path) -> None:
    path = str(tmp_path / "student.safetensors")
    written = write_tensors(path, {"matrix": torch.ones(50, 1 << 20)})
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), path, str(written["bytes"]), written["sha256"]]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["total"] == 50 << 20
    assert told["grown_kib"] < 70 << 10

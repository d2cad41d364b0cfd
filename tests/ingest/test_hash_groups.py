"""Numbers with the same hash are found together."""

import hashlib
import random
from collections import defaultdict
from pathlib import Path

import pytest

from ingest.hash_groups import HashGroups


def found(folder: Path, hashes: list[bytes], at_once: int) -> dict[int, tuple[int, int]]:
    """Number: the smallest number of its hash, and how many have it."""
    result: dict[int, tuple[int, int]] = {}
    with HashGroups(folder) as groups:
        for start in range(0, len(hashes), at_once):
            groups.add(b"".join(hashes[start : start + at_once]))
        for numbers, firsts, sizes in groups.groups():
            assert not result.keys() & set(numbers.tolist())
            result |= dict(zip(numbers.tolist(), zip(firsts.tolist(), sizes.tolist(), strict=True), strict=True))
    return result


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_groups_are_those_of_a_dictionary(tmp_path: Path, at_once: int) -> None:
    draw = random.Random(at_once)
    hashes = [hashlib.sha256(str(draw.randrange(150)).encode()).digest()[:16] for _ in range(400)]
    plain = defaultdict(list)
    for number, value in enumerate(hashes):
        plain[value].append(number)
    assert found(tmp_path / "x", hashes, at_once) == {number: (group[0], len(group)) for group in plain.values() for number in group}


def test_hashes_that_share_a_half_are_different(tmp_path: Path) -> None:
    a, b = bytes(8), b"\xff" * 8
    assert found(tmp_path / "x", [a + a, a + b, b + a, b + b, a + b], 2) == {0: (0, 1), 1: (1, 2), 2: (2, 1), 3: (3, 1), 4: (1, 2)}

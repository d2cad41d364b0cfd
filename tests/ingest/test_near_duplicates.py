"""Hashes within a few bits are found, all of them and no others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.near_duplicates import Hashes, _masks, from_hex, near, near_pairs


def plain(hashes: Hashes, query: Hashes, radius: int) -> list[list[int]]:
    """Every hash against every other."""
    return [[i, j] for i in range(len(hashes)) for j in range(len(query)) if int(hashes[i] ^ query[j]).bit_count() <= radius]


def clustered(seed: int, number: int) -> Hashes:
    """Random hashes of which many are others with up to six bits turned over, and some are equal."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, max(1, number // 4), np.uint64)[rng.integers(0, max(1, number // 4), number)]
    for _ in range(6):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)) * rng.integers(0, 2, number).astype(np.uint64)
    return hashes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120), st.integers(0, 120), st.integers(0, 8))
def test_near_finds_what_comparing_all_with_all_finds(seed: int, known: int, asked: int, radius: int) -> None:
    hashes, query = clustered(seed, known), clustered(seed, asked)
    assert near(hashes, query, radius).tolist() == plain(hashes, query, radius)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 200), st.integers(0, 8))
def test_pairs_of_a_set_are_those_that_comparing_all_with_all_finds(seed: int, number: int, radius: int) -> None:
    hashes = np.unique(clustered(seed, number))
    assert near_pairs(hashes, radius).tolist() == [pair for pair in plain(hashes, hashes, radius) if pair[0] < pair[1]]


def test_a_set_asked_for_itself_finds_each_hash_itself() -> None:
    hashes = np.array([7, 1 << 63, 7], np.uint64)
    assert near(hashes, hashes, 0).tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]


@pytest.mark.parametrize("number", [3_000, 40_000])  # large enough for more than one band to be asked for
def test_planted_neighbours_are_found_among_many(number: int) -> None:
    rng = np.random.default_rng(number)
    hashes = rng.integers(0, 2**64, number, np.uint64)
    planted = rng.permutation(number)[:200]
    turned = np.array([sum(1 << int(bit) for bit in rng.permutation(64)[: place % 6]) for place in range(200)], np.uint64)  # 0 to 5 bits
    pairs = near(hashes, hashes[planted] ^ turned, 4)
    assert {(int(planted[place]), place) for place in range(200) if place % 6 <= 4} == {(int(i), int(j)) for i, j in pairs}


def test_hexadecimal_digits_become_numbers() -> None:
    assert from_hex(["00000000000000ff", "8000000000000000"]).tolist() == [255, 1 << 63]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_whichever_bits_are_turned_some_bands_agree(k: int) -> None:
    rng = np.random.default_rng(k)
    masks = [int(mask) for mask in _masks(4, k)]
    for _ in range(500):
        turned = sum(1 << int(bit) for bit in rng.permutation(64)[:4])
        assert any(not turned & mask for mask in masks)

"""The order of an epoch: exactly once, well shuffled, local to a node, and small."""

import math
import time
import tracemalloc
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError
from shards.dataset import Dataset
from shards.manifest import Manifest, ShardEntry
from shards.order.epoch import Epochs, ItemTable, OrderSettings, most_portions, order_settings
from shards.order.locality import GIB, Split, amplification, bytes_in_use, refuse_small_cache, warn_of_shared_lanes
from shards.random_stream import item_keys, permutation, permuted, uniforms


def divisor(number: int, choice: int) -> int:
    fitting = [count for count in range(1, number + 1) if number % count == 0]
    return fitting[choice % len(fitting)]


def one_dataset(captions: list[list[int]], settings_: OrderSettings) -> Epochs:
    return Epochs([ItemTable.of_captions(captions, settings_.epoch_over)], settings_)


def unwritten(shards: int, samples: int = 10_000, sample_bytes: int = 50_000) -> Dataset:
    """A dataset that exists in its manifest alone, in a bucket nobody asks."""
    entries = tuple(ShardEntry(f"{n:05d}", samples, samples, samples * sample_bytes, f"{n:064d}", "", samples) for n in range(shards))
    return Dataset("s3://nowhere/set", Manifest(1, entries, {}, {}, "test"))


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(st.lists(st.integers(0, 4), max_size=9), min_size=1, max_size=12), batch=st.integers(1, 12), lanes=st.integers(0, 5),
    block_shards=st.integers(1, 5), epoch=st.integers(0, 3), epoch_over=st.sampled_from(["pairs", "images"]),
)  # fmt: skip
def test_an_order_is_exactly_once_for_any_shards_lanes_and_blocks(
    captions: list[list[int]], batch: int, lanes: int, block_shards: int, epoch: int, epoch_over: Any
) -> None:
    epochs = one_dataset(captions, OrderSettings(3, batch, epoch_over, divisor(batch, lanes), block_shards))
    flat = np.array([count for shard in captions for count in shard], dtype=np.int64)
    of_items = [(sample, caption) for sample, count in enumerate(flat) for caption in range(count if epoch_over == "pairs" else min(count, 1))]
    assert epochs.num_items == len(of_items)
    assert epochs.steps == len(of_items) // batch
    order = epochs.order(epoch)
    every = order.items(np.arange(epochs.steps * batch))
    assert np.unique(every.number).size == len(every.number) == epochs.steps * batch
    assert (every.caption < flat[every.sample]).all()
    expected = [of_items[number] for number in every.number]
    assert every.sample.tolist() == [sample for sample, _ in expected]
    if epoch_over == "pairs":
        assert every.caption.tolist() == [caption for _, caption in expected]
    shuffled = np.random.default_rng(0).permutation(epochs.steps * batch)
    again = one_dataset(captions, epochs.settings).order(epoch).items(shuffled)  # any position, in any order, from nothing
    assert (again.number == every.number[shuffled]).all()
    assert (again.key == every.key[shuffled]).all()


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=30), share=st.integers(1, 4), lanes=st.integers(1, 6), block_shards=st.integers(1, 4))
def test_a_lane_delivers_what_its_blocks_say_one_block_after_the_other(sizes: list[int], share: int, lanes: int, block_shards: int) -> None:
    epochs = one_dataset([[1] * size for size in sizes], OrderSettings(1, share * lanes, "pairs", lanes, block_shards))
    positions = np.arange(epochs.steps * share * lanes).reshape(-1, lanes, share)
    starts = np.cumsum([0, *sizes])
    for lane in range(lanes if epochs.steps else 0):
        delivered = epochs.order(2).items(positions[:, lane].ravel()).number.tolist()
        block = epochs.blocks(2, 0, lane)[0]
        assert (block.number, block.delivered) == (0, 0.0)
        while delivered:
            here = {int(starts[portion.shard]) + item for portion in block.portions for item in range(portion.first, portion.end)}
            assert set(delivered[: len(here)]) == here
            delivered, block = delivered[len(here) :], epochs.after(block)
        assert (block.epoch, block.number) == (3, 0)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_that_is_never_stored_is_one(size: int, key: int) -> None:
    keys = np.full(size, key, dtype=np.uint64)
    assert np.unique(permuted(keys, np.full(size, size), np.arange(size))).tolist() == list(range(size))


def test_permutations_of_few_elements_are_equally_likely_and_long_ones_leave_no_trend() -> None:
    for size in (2, 3, 4, 5):
        keys = item_keys(1, size, np.arange(40_000))
        columns = [permuted(keys, np.full(40_000, size), np.full(40_000, place)) for place in range(size)]
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1]
        freedom = math.factorial(size) - 1
        expected = 40_000 / (freedom + 1)
        assert len(counts) == freedom + 1
        assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)  # chi-squared
    places = np.arange(40_000)
    long = permuted(np.full(40_000, 7, dtype=np.uint64), np.full(40_000, 40_000), places)
    assert abs(np.corrcoef(places, long)[0, 1]) < 4 / 200
    assert abs(np.corrcoef(long[1:], long[:-1])[0, 1]) < 4 / 200
    assert np.histogram(long[:4000], 40, (0, 40_000))[0].std() < 15  # of 100 in each, Poisson's 10


def test_shuffling_is_as_good_as_a_full_shuffle_within_blocks_and_leaves_no_trend_over_epochs() -> None:
    shards, samples = 1400, 10
    chosen = order_settings(shards, 5, 64)
    assert (chosen.lanes, chosen.block_shards) == (64, 4)
    epochs = one_dataset([[1] * samples] * shards, chosen)
    positions = np.arange(epochs.steps * 64)
    correlations = []
    for epoch in range(100):
        numbers = epochs.order(epoch).items(positions).number
        correlations.append(np.corrcoef(positions, numbers)[0, 1])
    assert abs(np.mean(correlations)) < 0.01
    assert np.abs(correlations).max() < 4 / math.sqrt(shards)
    assert epochs.sequence((0, 0)).blocks == 6


def test_within_a_block_items_move_by_a_third_of_it_on_average() -> None:
    epochs = one_dataset([[1] * 500] * 80, OrderSettings(0, 64, "pairs", 4, 5))
    sequence = epochs.sequence((0, 0))
    for lane in range(4):
        for block in range(sequence.blocks):
            start, end = int(sequence.start_of(block)), int(sequence.start_of(block + 1))
            numbers = sequence.numbers(np.full(end - start, lane), np.arange(start, end))
            ranks = np.empty(end - start, dtype=np.int64)
            unshuffled = [500 * portion.shard + item for portion in sequence.portions(lane, block) for item in range(portion.first, portion.end)]
            ranks[np.argsort(np.argsort(unshuffled))] = np.arange(end - start)
            moved = np.abs(ranks[np.argsort(np.argsort(numbers))] - np.arange(end - start))
            assert moved.mean() > 0.3 * (end - start)


def test_a_batch_mixes_the_blocks_of_all_lanes() -> None:
    epochs = one_dataset([[1] * 50] * 64, order_settings(64, 0, 64))
    numbers = epochs.order(0).items(np.arange(epochs.steps * 64)).number
    assert np.mean([np.unique(batch // 50).size for batch in numbers.reshape(-1, 64)]) > 30  # shards in a batch
    assert sorted(permutation(9, 0, 1000).tolist()) == list(range(1000))


def test_which_items_an_epoch_leaves_out_changes() -> None:
    epochs = one_dataset([[1] * 7] * 9, OrderSettings(0, 10))
    left_out = [frozenset(range(63)) - set(epochs.order(epoch).items(np.arange(60)).number.tolist()) for epoch in range(40)]
    assert all(len(left) == 3 for left in left_out)
    assert len(set().union(*left_out)) > 40  # of 63


class LeastRecentlyUsed:
    """A plain cache of pieces that counts what it fetches."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.held, self.fetched = capacity, OrderedDict[tuple[int, int], int](), 0

    def touch(self, piece: tuple[int, int], size: int) -> None:
        if piece not in self.held:
            self.fetched += size
        self.held[piece] = size
        self.held.move_to_end(piece)
        while sum(self.held.values()) > self.capacity:
            self.held.popitem(last=False)


def fetched_by_nodes(epochs: Epochs, split: Split, sample_bytes: int, samples: int, piece: int, capacity: int) -> int:
    """Bytes that the nodes of a run fetch in an epoch, sample after sample."""
    total, batch = 0, epochs.settings.global_batch_size
    for node in range(split.nodes):
        cache = LeastRecentlyUsed(capacity)
        offsets = np.concatenate(
            [
                (a * split.world_size + node * split.ranks_per_node) * split.micro_batch_size + np.arange(split.ranks_per_node * split.micro_batch_size)
                for a in range(split.accumulation_steps)
            ]
        )
        for step in range(epochs.steps):
            for number in epochs.order(0).items(step * batch + offsets).number.tolist():
                shard, row = divmod(number, samples)
                cache.touch((shard, row * sample_bytes // piece), piece)
        total += cache.fetched
    return total


@pytest.mark.parametrize("split", [Split(8, 1, 4, 2), Split(4, 2, 4, 2), Split(32), Split(8, 1, 4, 1)])
def test_a_node_fetches_each_byte_about_once_where_its_cache_holds_its_lanes_blocks_and_not_where_it_holds_half(split: Split) -> None:
    shards, samples, sample_bytes, piece = 80, 60, 100, 600  # ten pieces a shard
    dataset = unwritten(shards, samples, sample_bytes)
    epochs = Epochs([dataset.item_table("pairs")], OrderSettings(2, 32, "pairs", 4, 4))
    epochs.tables[0].captions_of = lambda shard: np.ones(samples, dtype=np.uint16)
    lanes = len(split.lanes_of_node(0, epochs.settings))
    assert lanes == 4 // split.nodes
    needed = bytes_in_use(dataset.parts, epochs, lanes, piece)
    everything = shards * samples * sample_bytes
    assert needed <= lanes * (4 * samples * sample_bytes + 3 * piece)
    assert fetched_by_nodes(epochs, split, sample_bytes, samples, piece, needed) / everything <= 1.05
    assert amplification(dataset.parts, epochs, split, piece) <= 1.05
    assert fetched_by_nodes(epochs, split, sample_bytes, samples, piece, needed // 2) / everything > 1.5


@pytest.mark.parametrize(
    ("nodes", "lanes", "expected"),
    [(64, 64, 1.0), (16, 64, 1.0), (1, 64, 1.0), (48, 64, 1.5), (64, 8, 8.0), (128, 64, 2.0)],
)
def test_what_the_nodes_read_over_what_there_is_depends_on_lanes_and_nodes(nodes: int, lanes: int, expected: float) -> None:
    """Lanes that several nodes share are read by each of them."""
    dataset = unwritten(1400)
    epochs = Epochs([dataset.item_table("pairs")], OrderSettings(0, 3072, "pairs", lanes, 4))
    found = amplification(dataset.parts, epochs, Split(3072 // nodes, 1, nodes, 1), 8 * 2**20)
    assert expected * 0.999 < found < expected * 1.01


@pytest.mark.parametrize(("nodes", "accumulation", "warned"), [(64, 1, False), (32, 2, False), (48, 1, True), (64, 2, True)])
def test_nodes_that_share_lanes_are_told_what_it_costs(nodes: int, accumulation: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    dataset = unwritten(1400)
    epochs = Epochs([dataset.item_table("pairs")], OrderSettings(0, 3072, "pairs", 64, 4))
    warn_of_shared_lanes(dataset.parts, epochs, Split(3072 // (nodes * accumulation), accumulation, nodes, 1), 8 * 2**20)
    assert (f"{nodes} nodes fetch each byte" in caplog.text) == warned
    assert (f"a multiple of nodes x accumulation steps ({nodes * accumulation})" in caplog.text) == warned


def test_lanes_and_blocks_follow_shards_and_batch_and_never_the_ranks() -> None:
    chosen = {shards: order_settings(shards, 0, 512) for shards in (1, 8, 39, 40, 400, 1400, 100_000)}
    assert {shards: (one.lanes, one.block_shards) for shards, one in chosen.items()} == {
        1: (1, 64), 8: (1, 64), 39: (1, 64), 40: (2, 32), 400: (16, 4), 1400: (64, 4), 100_000: (64, 4)
    }  # fmt: skip
    assert order_settings(1400, 0, 24).lanes == 24
    with pytest.raises(ConfigError, match=r"^lanes 5 do not divide the global_batch_size 24; take one of 1, 2, 3, 4, 6, 8, 12, 24$"):
        order_settings(8, 0, 24, lanes=5)


def test_a_cache_that_is_too_small_is_refused_with_what_would_fit() -> None:
    dataset = unwritten(1400)
    epochs = Epochs([dataset.item_table("pairs")], order_settings(1400, 0, 4096))
    eight_gpus, cluster = Split(512, 1, 8, 8), Split(8, 1, 512, 8)
    refuse_small_cache(dataset.parts, epochs, cluster, 4 * GIB, 16 * 2**20)
    with pytest.raises(ConfigError) as raised:
        refuse_small_cache(dataset.parts, epochs, eight_gpus, 40 * GIB, 16 * 2**20)
    assert str(raised.value) == (
        "cache_gib is 40, but a node that serves 64 of 64 lanes of 4 shards a block needs 111, or shards would be fetched again and again; "
        "set cache_gib to 110.7, or lanes to 64 and block_shards to 1"
    )
    smaller = Epochs([dataset.item_table("pairs")], order_settings(1400, 0, 4096, block_shards=1))
    refuse_small_cache(dataset.parts, smaller, eight_gpus, 40 * GIB, 16 * 2**20)
    refuse_small_cache(dataset.parts, epochs, eight_gpus, 111 * GIB, 16 * 2**20)


def test_a_rank_of_512_over_14_million_samples_holds_a_few_megabytes_and_starts_at_once() -> None:
    shards, samples = 1400, 10_000
    dataset = unwritten(shards, samples)
    np.random.default_rng()  # numpy's own first use
    tracemalloc.start()
    begun = time.process_time()
    epochs = Epochs([dataset.item_table("pairs")], order_settings(shards, 0, 4096))
    table = epochs.tables[0]
    table.captions_of = lambda shard: np.ones(samples, dtype=np.uint16)
    split = Split(8, 1, 512, 8)
    lanes = split.lanes_of_rank(300, epochs.settings)
    held = 2 * len(lanes) * most_portions(epochs, 0)
    table.ends.count = held
    first = epochs.order(11).items(1000 * 4096 + 300 * 8 + np.arange(8))
    seconds = time.process_time() - begun
    for step in range(1000, 1200):
        epochs.order(11).items(step * 4096 + 300 * 8 + np.arange(8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(first.number) == 8
    assert len(lanes) == 1
    assert peak < 2e6  # the order's own; the 8 workers are threads of the rank and share it
    assert held * samples * 30 < 4e6  # and the indexes, of 30 bytes a sample, that the dataset holds for it
    assert epochs.sequence((0, 11)).nbytes < 20_000
    assert seconds < 2


def test_uniforms_are_uniform_open_and_independent_of_company() -> None:
    keys = item_keys(1, 2, np.arange(4000))
    drawn = uniforms(keys, 7, 25)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert np.abs(np.histogram(drawn, 50, (0, 1))[0] / 2000 - 1).max() < 0.1
    assert np.abs(np.corrcoef(drawn[:, :6].T) - np.eye(6)).max() < 0.06
    assert (uniforms(keys[17:18], 7, 25) == drawn[17]).all()
    assert (uniforms(keys, 7, 3) == drawn[:, :3]).all()
    assert not np.isin(uniforms(keys, 8, 25), drawn).any()
    assert np.unique(np.concatenate([item_keys(seed, epoch, np.arange(1000)) for seed in range(5) for epoch in range(5)])).size == 25_000


def test_keys_draws_and_order_never_change_between_versions() -> None:
    """A checkpoint of today resumes with tomorrow's code only while these numbers stand."""
    order = one_dataset([[1, 2, 3, 1]] * 6, OrderSettings(7, 6, "pairs", 2, 2)).order(2)
    assert item_keys(1, 2, np.array([0, 3])).tolist() == [16613338946343043936, 3042388159972110417]
    drawn = uniforms(np.array([0, 2**64 - 1], dtype=np.uint64), 5, 2)
    assert drawn.ravel().tolist() == [0.42144545373090636, 0.6635693160804931, 0.726233662502514, 0.18858961436226906]
    assert order.items(np.arange(12)).number.tolist() == [41, 8, 7, 16, 27, 18, 11, 12, 13, 15, 17, 19]

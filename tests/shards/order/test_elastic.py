"""Whatever the ranks, workers, processes and interruptions: the same global batches, every item exactly once."""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import delivering
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order.epoch import Epochs, ItemTable, OrderSettings
from shards.order.locality import Split
from shards.order.shares import Shares

from ..conftest import MakeDataset

WORLDS, WORKERS = (1, 2, 3, 4, 8), (0, 1, 2, 5)
BATCH = 24


@pytest.fixture
def source(make_dataset: MakeDataset, tmp_path: Path) -> str:
    """Odd and empty shards, fewer than workers in all."""
    return make_dataset([9, 0, 2, 34, 5], str(tmp_path / "odd")).folder


@pytest.fixture
def blend(make_dataset: MakeDataset, tmp_path: Path) -> dict[str, Any]:
    folders = [make_dataset(counts, str(tmp_path / name)).folder for name, counts in (("web", [9, 0, 7, 11]), ("coco", [5, 13]), ("vg", [30]))]
    return {
        "blend": [{"dataset": folders[0], "weight": 3}, {"weight": 1, "blend": [{"dataset": folders[1], "weight": 2}, {"dataset": folders[2], "weight": 1}]}]
    }


def offsets_of_rank(split: Split, rank: int) -> list[int]:
    """By the rule of the design, written out: micro-batch a of rank r is slice a x world_size + r."""
    slices = [accumulation * split.world_size + rank for accumulation in range(split.accumulation_steps)]
    return [part * split.micro_batch_size + item for part in slices for item in range(split.micro_batch_size)]


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.lists(st.lists(st.integers(0, 3), max_size=17), min_size=1, max_size=9), min_size=1, max_size=3),
    lanes=st.sampled_from([1, 2, 4, 6, 24]), weights=st.lists(st.integers(1, 5), min_size=3, max_size=3), epoch=st.integers(0, 2),
)  # fmt: skip
def test_every_world_draws_every_item_once_in_equal_steps_of_the_same_global_batches(
    shards: list[list[list[int]]], lanes: int, weights: list[int], epoch: int
) -> None:
    """Workers are no input of the order: they make the micro-batches that the split of a rank names."""
    tables = [ItemTable.of_captions(captions, "pairs") for captions in shards]
    tables = [table for table in tables if len(tables) == 1 or table.num_items >= lanes]
    total = sum(weights[: len(tables)])
    shares = Shares([Fraction(weight, total) for weight in weights[: len(tables)]], lanes) if tables else None
    if shares is None:
        return
    batch = 72  # of which all worlds, with and without accumulation, get equal parts
    epochs = Epochs(tables, OrderSettings(1, batch, "pairs", lanes, 2), shares)
    every = epochs.order(epoch).items(np.arange(epochs.steps * batch)).number.reshape(-1, batch)
    if len(tables) == 1:
        assert np.unique(every).size == every.size > epochs.num_items - batch
    for world, accumulation in itertools.product(WORLDS, (1, 3)):
        split = Split(batch // (world * accumulation), accumulation, world)
        ranks = [offsets_of_rank(split, rank) for rank in range(world)]
        assert sorted(itertools.chain(*ranks)) == list(range(batch))
        for rank, offsets in enumerate(ranks):
            assert split.lanes_of_rank(rank, epochs.settings) == sorted({offset // (batch // lanes) for offset in offsets})
            for step in range(epochs.steps):
                assert epochs.order(epoch).items(step * batch + np.array(offsets)).number.tolist() == every[step, offsets].tolist()


@pytest.mark.parametrize(("saved_on", "resumed_on"), [(2, 4), (4, 3), (8, 1)])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_saved_on_some_ranks_goes_on_with_others(source: str, blend: dict[str, Any], saved_on: int, resumed_on: int, mixed: bool) -> None:
    data = blend if mixed else source
    uninterrupted = delivering.global_batches(data, 8, batch=BATCH)
    one = delivering.loader(delivering.opened(data), batch=BATCH, world_size=saved_on, rank=saved_on - 1, num_workers=2)
    position = list(islice(one.from_position(one.start()), 3))[-1][1]
    one.close()
    assert delivering.global_batches(data, 3, batch=BATCH, world_size=saved_on) == uninterrupted[:3]
    rest = delivering.global_batches(data, 5, start=asdict(position), batch=BATCH, world_size=resumed_on, num_workers=1)
    assert delivering.sha256_of(rest) == delivering.sha256_of(uninterrupted[3:])


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_interruption_after_any_step_changes_nothing(source: str, blend: dict[str, Any], num_workers: int, mixed: bool) -> None:
    data = blend if mixed else source
    one = delivering.loader(delivering.opened(data))
    steps = list(islice(one.from_position(one.start()), one.steps_per_epoch + 3))
    for done in range(len(steps) - 1):
        rest = delivering.global_batches(data, 1, start=asdict(steps[done][1]), num_workers=num_workers)
        assert delivering.sha256_of(rest) == delivering.sha256_of([steps[done + 1][0][0]])


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("mixed", [False, True])
def test_ranks_that_are_processes_of_their_own_deliver_the_same_global_batches(
    source: str, blend: dict[str, Any], processes: ProcessPoolExecutor, mixed: bool
) -> None:
    data = blend if mixed else source
    plain = delivering.global_batches(data, 4, batch=BATCH)
    for world_size, num_workers, accumulation in [(2, 0, 1), (2, 5, 3), (3, 1, 2), (3, 2, 1), (4, 5, 1), (8, 1, 1), (8, 2, 3)]:
        options = {"batch": BATCH, "world_size": world_size, "num_workers": num_workers, "accumulation": accumulation}
        ranks = [processes.submit(delivering.of_rank, data, rank, 4, None, **options) for rank in range(world_size)]
        assert delivering.joined([rank.result() for rank in ranks]) == plain


def test_an_epoch_delivers_every_item_once_over_the_ranks(source: str) -> None:
    one = delivering.loader(delivering.opened(source), batch=BATCH)
    epoch = delivering.global_batches(source, one.steps_per_epoch, batch=BATCH, world_size=3, num_workers=2)
    counts = Counter((item[2], item[3]) for batch in epoch for item in batch)
    assert set(counts.values()) == {1}
    assert len(counts) == one.steps_per_epoch * BATCH > one.items_per_epoch - BATCH

"""Datasets mixed by weight: the ratio at every step, every item once an epoch of its own dataset, and a state that says where each stands."""

import json
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import delivering
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError, DataError
from shards import manifest
from shards.order.blend import SMALLEST_SHARE, Source, parse_blend
from shards.order.epoch import Epochs, ItemTable, OrderSettings
from shards.order.locality import Split, amplification, bytes_in_use
from shards.order.mixing import MixedDataset, open_blend
from shards.order.shares import Shares

from ..conftest import MakeDataset


@pytest.fixture
def blend(make_dataset: MakeDataset, tmp_path: Path) -> dict[str, Any]:
    folders = [make_dataset(counts, str(tmp_path / name)).folder for name, counts in (("web", [9, 0, 17, 11]), ("coco", [5, 13]), ("vg", [30]))]
    return {
        "blend": [{"dataset": folders[0], "weight": 3}, {"weight": 1, "blend": [{"dataset": folders[1], "weight": 2}, {"dataset": folders[2], "weight": 1}]}]
    }


def test_shares_of_nested_blends_are_multiplied() -> None:
    inner = {"weight": 1, "blend": [{"dataset": "s3://b/coco/", "weight": 0.1}, {"dataset": "vg", "weight": 0.3, "name": "visual genome", "manifest": 7}]}
    assert parse_blend({"blend": [{"dataset": "data/web", "weight": 3}, inner]}) == [
        Source("web", "data/web", Fraction(3, 4)), Source("coco", "s3://b/coco/", Fraction(1, 16)), Source("visual genome", "vg", Fraction(3, 16), 7)
    ]  # fmt: skip
    assert parse_blend("data/web") == [Source("web", "data/web", Fraction(1))]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"blend": []}, r"^dataset: expected a folder, or blend"),
        ({"mix": [1]}, r"^dataset: expected a folder, or blend"),
        ({"blend": [{"dataset": "a", "weight": 0}]}, r"^blend\.0\.weight is 0: expected a number above 0"),
        ({"blend": [{"dataset": "a"}]}, r"^blend\.0\.weight is None"),
        ({"blend": [{"dataset": "a", "weight": True}]}, r"^blend\.0\.weight is True"),
        ({"blend": [{"dataset": "a", "weight": float("nan")}]}, r"^blend\.0\.weight is nan"),
        ({"blend": [{"dataset": "a", "weight": 1}, {"blend": [{"weight": 1}], "weight": 1}]}, r"^blend\.1\.blend\.0 is \{'weight': 1\}: expected either"),
        ({"blend": [{"dataset": "a", "wieght": 1}]}, r"^blend\.0 is .*wieght"),
        ({"blend": [{"dataset": "x/a", "weight": 1}, {"dataset": "y/a", "weight": 1}]}, r"^two datasets of the blend are called 'a'"),
        ({"blend": [{"dataset": 5, "weight": 1}]}, r"^blend\.0 is .*expected a folder as dataset"),
        ({"blend": [{"dataset": "a", "weight": 1}], "weight": 3, "foo": 1}, r"^dataset: unknown key 'foo', 'weight'; at the top goes nothing but blend$"),
        (
            {"blend": [{"blend": [{"dataset": "a", "weight": 1}], "weight": 1, "manifest": 7, "name": "zz"}]},
            r"^blend\.0: unknown key 'manifest', 'name'; in a blend within a blend go blend and weight$",
        ),
        *(
            ({"blend": [{"dataset": "a", "weight": 1, "manifest": number}]}, rf"^blend\.0\.manifest is {number}: expected the number of a manifest, 1 or more$")
            for number in (-4, 0, True, 1.5)
        ),
        ({"blend": [{"dataset": "", "weight": 1}]}, r"^blend\.0 is .*expected a folder as dataset"),
        (" ", r"^dataset: expected a folder, or blend"),
        (
            {"blend": [{"dataset": "a", "weight": 1}, {"dataset": "b", "weight": 1e-9}]},
            r"^b: its share of the items drawn would be 1e-09, the smallest that counts is 1/1048576; raise its weight, or take it out of the blend$",
        ),
    ],
)
def test_a_mistake_in_a_blend_names_its_place(value: str | dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_blend(value)


@settings(max_examples=80, deadline=None)
@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=9), lanes=st.integers(1, 64), share=st.integers(1, 9))
def test_the_ratio_holds_at_every_batch_and_every_place_has_one_dataset(weights: list[int], lanes: int, share: int) -> None:
    shares = Shares([Fraction(weight, sum(weights)) for weight in weights], lanes)
    expected = np.array([float(weight) for weight in shares.weights])
    for step in (1, 2, 3, 10, 99, 1000, 10**6, 10**8):
        taken = shares.taken(np.full(lanes, step * share))
        assert (taken.sum(axis=1) == step * share).all()
        items = step * share * lanes
        off = np.abs(taken.sum(axis=0) - items * expected).max()
        assert off <= max(3.0, np.sqrt(items))
        if len(weights) == 2:
            assert off <= 1 + items * 2**-40
    places = np.arange(50)
    for lane in {0, lanes - 1}:
        sources, counts = shares.draws(np.full(50, lane), places)
        plain = Counter[int]()
        for source, count in zip(sources.tolist(), counts.tolist(), strict=True):  # counted one after the other
            assert plain[source] == count
            plain[source] += 1
        assert shares.taken(np.full(lanes, 50))[lane].tolist() == [plain[source] for source in range(len(weights))]


def test_the_smallest_share_that_is_accepted_is_drawn() -> None:
    millionth = 1 / (SMALLEST_SHARE.denominator - 1)
    inner = {"weight": 2 * millionth, "blend": [{"dataset": "b", "weight": 1}, {"dataset": "c", "weight": 1}]}
    for blend in ([{"dataset": "a", "weight": 1}, {"dataset": "b", "weight": millionth * 1.0001}], [{"dataset": "a", "weight": 1 - millionth}, inner]):
        shares = Shares([source.share for source in parse_blend({"blend": blend})], 8)
        assert (shares.taken(np.full(8, SMALLEST_SHARE.denominator)).sum(axis=0)[1:] > 0).all()


def test_realistic_blends_keep_their_ratio_to_five_items_whatever_the_step() -> None:
    for weights in ([10, 3, 1], [50, 20, 15, 10, 3, 1, 1], [1] * 10):
        shares = Shares([Fraction(weight, sum(weights)) for weight in weights], 64)
        for step in [*range(1, 500), 10**5]:
            drawn = shares.taken(np.full(64, step * 64)).sum(axis=0)
            assert np.abs(drawn - step * 4096 * np.array(weights) / sum(weights)).max() < 5


def test_each_dataset_gives_every_item_once_an_epoch_of_its_own() -> None:
    sizes, lanes = ([40, 0, 33], [7, 9]), 4
    tables = [ItemTable.of_captions([[1] * size for size in one], "pairs") for one in sizes]
    epochs = Epochs(tables, OrderSettings(2, 24, "pairs", lanes, 1), Shares([Fraction(3, 4), Fraction(1, 4)], lanes))
    numbers = np.concatenate([epochs.order(epoch).items(np.arange(epochs.steps * 24)).number for epoch in range(9)])
    for source, (start, end) in enumerate(pairwise(epochs.item_starts.tolist())):
        own = [number for number in numbers.tolist() if start <= number < end]
        of_epoch = epochs.items_per_lane[source] * lanes
        assert of_epoch > end - start - lanes
        counts = Counter(own)
        assert max(counts.values()) - 1 <= -(-len(own) // of_epoch) <= 2 * len(own) // of_epoch + 1
        for lane in range(lanes):
            order = epochs.sequence((source, 0))
            stretch = order.numbers(np.full(order.items_per_lane, lane), np.arange(order.items_per_lane))
            assert len(set(stretch.tolist())) == order.items_per_lane
    drawn = epochs.drawn(9, 0)
    assert drawn == [int((numbers < epochs.item_starts[1]).sum()), int((numbers >= epochs.item_starts[1]).sum())]


def test_crops_of_an_item_differ_between_the_epochs_of_its_dataset() -> None:
    tables = [ItemTable.of_captions([[1] * 96], "pairs"), ItemTable.of_captions([[1] * 12], "pairs")]
    epochs = Epochs(tables, OrderSettings(2, 12, "pairs", 2, 1), Shares([Fraction(1, 2), Fraction(1, 2)], 2))
    items = epochs.order(0).items(np.arange(epochs.steps * 12))
    small = items.number >= 96
    assert Counter(items.number[small].tolist()).most_common(1)[0][1] >= 4
    assert np.unique(items.key).size == len(items.key)


def test_the_state_counts_what_every_dataset_gave_and_stays_small(blend: dict[str, Any]) -> None:
    one = delivering.loader(delivering.opened(blend), num_workers=2)
    drawn, sizes = Counter[str](), Counter[str]()
    assert isinstance(one.dataset, MixedDataset)
    for batches, position in islice(one.from_position(one.start()), 2 * one.steps_per_epoch):
        for item in batches[0]:
            part = one.dataset.parts[one.dataset.part_of(item[2])[0]]
            drawn[part.name] += 1
            sizes[part.name] += one.dataset.bytes_of(item[2])
        assert position.drawn == drawn
        assert {name: counters["bytes"] for name, counters in one.sources(position, []).items()} == sizes
        assert len(json.dumps(asdict(position))) < 1000
    one.close()
    total = sum(drawn.values())
    assert all(abs(drawn[part.name] - total * part.share) <= 2 for part in one.dataset.parts)


def test_a_state_whose_counters_do_not_fit_or_of_other_weights_is_refused(blend: dict[str, Any]) -> None:
    one = delivering.loader(delivering.opened(blend))
    position = list(islice(one.from_position(one.start()), 3))[-1][1]
    with pytest.raises(DataError, match="the order says"):
        one.from_position(replace(position, drawn={**position.drawn, "vg": position.drawn["vg"] + 1}))
    blend["blend"][0]["weight"] = 4
    with pytest.raises(DataError, match="resume with the same ones"):
        delivering.loader(delivering.opened(blend)).from_position(position)


def test_a_damaged_item_is_replaced_from_its_own_dataset_and_counted_there(blend: dict[str, Any], flip_byte: Any) -> None:
    folder = blend["blend"][1]["blend"][0]["dataset"]
    for offset in (700, 4000, 8000):
        flip_byte(f"{folder}/00001.tar", offset)
    plain = delivering.loader(delivering.opened(blend))
    damaged = list(islice(plain.from_position(plain.start()), 2 * plain.steps_per_epoch))
    position, quarantine = damaged[-1][1], plain.quarantine
    assert quarantine
    assert all(plain.dataset.part_of(entry["sample"])[0] == 1 for entry in quarantine)
    counters = plain.sources(position, quarantine)
    assert {name: one["replaced"] for name, one in counters.items()} == {"web": 0, "coco": sum(entry["replaced"] for entry in quarantine), "vg": 0}
    given = Counter(plain.dataset.parts[plain.dataset.part_of(item[2])[0]].name for batches, _ in damaged for item in batches[0])
    assert given == position.drawn


def test_samples_are_numbered_through(blend: dict[str, Any]) -> None:
    mixed = delivering.opened(blend)
    assert isinstance(mixed, MixedDataset)
    keys = [mixed.read(sample).key for sample in range(mixed.num_samples)]
    assert keys == [part.dataset.read(sample).key for part in mixed.parts for sample in range(part.dataset.num_samples)]
    assert "coco/00000.tar row 2" in mixed.name_of(39)
    with pytest.raises(IndexError):
        mixed.read(mixed.num_samples)


def test_every_dataset_is_pinned_to_its_manifest(blend: dict[str, Any]) -> None:
    pinned = delivering.opened(blend).pinned
    assert pinned == {"web": 1, "coco": 1, "vg": 1}
    before = delivering.opened(blend).fingerprint
    folder = blend["blend"][0]["dataset"]
    manifest.publish(folder, manifest.read_manifest(folder).shards[:1], {}, {})
    assert delivering.opened(blend).fingerprint != before
    assert open_blend(parse_blend(blend), pinned).fingerprint == before
    blend["blend"][0]["manifest"] = 1
    assert delivering.opened(blend).fingerprint == before


def test_a_dataset_with_fewer_items_than_lanes_is_refused(blend: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"coco: 35 items are fewer than the 48 lanes; take it out of the blend, or set fewer lanes$"):
        delivering.loader(delivering.opened(blend), batch=48, lanes=48)


def test_mixing_keeps_lanes_local_to_nodes(blend: dict[str, Any]) -> None:
    mixed = delivering.opened(blend)
    epochs = delivering.loader(mixed, batch=16, lanes=4, block_shards=1).epochs
    split = Split(4, 1, 4, 1)
    positions = np.arange(epochs.steps * 16).reshape(-1, 4, 4)
    for source in range(3):
        seen = []
        for node in range(4):
            own = positions[:, node].ravel()
            own = own[epochs.order(0).sources(own) == source][: epochs.items_per_lane[source]]
            seen.append(set(epochs.order(0).items(own).number.tolist()))
        assert all(not one & other for one, other in [(seen[0], seen[1]), (seen[0], seen[3]), (seen[1], seen[2])])
    assert 0.9 < amplification(mixed.parts, epochs, split, 512) < 1.2  # up to three items a dataset wait for another epoch
    assert bytes_in_use(mixed.parts, epochs, 4, 512) == 0  # local shards are read where they are

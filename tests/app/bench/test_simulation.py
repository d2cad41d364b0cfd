"""The simulation of a fleet fetches what a plain count says, keeps to the cache's bound, and fills no disk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.app import cli
from pipeline.app.bench import simulation
from pipeline.app.bench.simulation import Fleet, Stretch, made_up_dataset, simulate_node
from pipeline.core.errors import ConfigError
from shards.order.epoch import Epochs
from shards.remote.ranges import PIECE_BYTES

FLEET = Fleet(nodes=4, ranks_per_node=2, global_batch_size=64, cache_bytes=2**30, lanes=4, shards=160, shard_samples=200)


def steps_of(fleet: Fleet) -> int:
    return Epochs([made_up_dataset(fleet).item_table("pairs")], fleet.settings).steps


def bytes_of_node_counted_plainly(fleet: Fleet, node: int) -> int:
    """The distinct pieces that one epoch's samples of a node lie in, sample by sample."""
    dataset = made_up_dataset(fleet)
    order = Epochs([dataset.item_table("pairs")], fleet.settings).order(0)
    share = fleet.global_batch_size // fleet.nodes
    pieces = set()
    for step in range(order.steps):
        first = step * fleet.global_batch_size + node * share
        for sample in order.items(np.arange(first, first + share)).sample:
            shard, row = divmod(int(sample), fleet.shard_samples)
            index = dataset.indexes(shard)
            start, end = int(index.offset[row]), int(index.offset[row] + index.length[row])
            pieces |= {(shard, piece) for piece in range(start // PIECE_BYTES, (end - 1) // PIECE_BYTES + 1)}
    return sum(min(PIECE_BYTES, dataset.manifest.shards[shard].bytes - piece * PIECE_BYTES) for shard, piece in pieces)


@pytest.mark.parametrize("node", [0, 3])
def test_a_node_whose_cache_holds_everything_fetches_each_of_its_pieces_once(node: int) -> None:
    fetched = simulate_node(replace(FLEET, cache_bytes=2**34), Stretch(0, steps_of(FLEET)), node)
    plain = bytes_of_node_counted_plainly(FLEET, node)
    assert fetched.samples == steps_of(FLEET) * FLEET.global_batch_size // FLEET.nodes
    assert plain <= fetched.bytes_fetched <= 1.5 * plain  # and what is announced of the next epoch's first block
    assert fetched.peak_cache_bytes >= fetched.bytes_fetched


def test_without_room_to_fetch_ahead_it_is_exactly_the_plain_count(tmp_path: Path) -> None:
    node = simulation.Node(replace(FLEET, cache_bytes=2**34), 1, str(tmp_path))
    node.prefetch.share = 0.0
    assert node.go(Stretch(0, steps_of(FLEET))).bytes_fetched == bytes_of_node_counted_plainly(FLEET, 1)


def test_the_cache_keeps_to_its_bound_and_pieces_are_holes(tmp_path: Path) -> None:
    fleet = replace(FLEET, cache_bytes=2**27)
    node = simulation.Node(fleet, 0, str(tmp_path))
    day = node.go(Stretch(0, 2 * steps_of(fleet)))
    assert 2**26 < day.peak_cache_bytes <= fleet.cache_bytes + 4096  # and the ledger
    assert day.requests > 16
    files = [path.stat() for path in tmp_path.glob("*-*")]
    assert all(file.st_size > 0 and file.st_blocks == 0 for file in files)


def test_too_small_a_cache_fetches_again_and_again_and_says_what_is_needed() -> None:
    tight = replace(FLEET, cache_bytes=simulation.needed_bytes(FLEET) // 3)
    (enough,), (less,) = (simulation.epoch_rows("x", fleet, [0], "why") for fleet in (FLEET, tight))
    assert enough.ours < 1.3
    assert less.ours > 2 * enough.ours
    assert "the loader says" not in enough.note
    assert "the loader says: cache_gib is" in less.note


def test_a_stretch_counts_only_what_it_is_told_to() -> None:
    steps = steps_of(FLEET)
    whole, second = (simulate_node(FLEET, Stretch(0, 2 * steps, uncounted), 0) for uncounted in (0, steps))
    assert second.samples == whole.samples // 2
    assert 0 < second.bytes_fetched < whole.bytes_fetched


def test_the_command_writes_what_a_process_holds(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.bench_app, ["shards-simulation", "--cases", "memory", "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    order, indexes = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (order["case"], indexes["case"]) == ("order state", "indexes held")
    assert 0 < order["ours"] < 5
    assert 0 < indexes["ours"] < 10


def test_a_case_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match="--cases dya: no such case; there are day, epoch, fleets, restart, memory"):
        simulation.run(["dya"], simulation.Scale(1, 1, 1))

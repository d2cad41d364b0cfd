"""Pieces of remote shards on a node's disk: fetched once, bounded, and right however a process dies."""

import hashlib
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError, DataError, Stopped
from shards.remote import node_cache
from shards.remote.node_cache import NodeCache

PIECE = 1000


def content(name: str) -> bytes:
    """1,000 bytes that only this piece has."""
    return (hashlib.sha256(name.encode()).digest() * 32)[:PIECE]


def named(number: int) -> str:
    return f"{hashlib.sha256(str(number).encode()).hexdigest()[:32]}-{number:06d}"


class Store:
    """Hands out pieces in chunks and counts how often each was asked for."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s, self.asked = pause_s, []

    def fetch(self, name: str) -> Callable[[float], Iterator[bytes]]:
        def fetched(deadline: float) -> Iterator[bytes]:
            self.asked.append(name)
            for start in range(0, PIECE, 300):
                time.sleep(self.pause_s)
                yield content(name)[start : start + 300]

        return fetched


def on_disk(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.iterdir() if entry.name != "ledger")


def read(cache: NodeCache, store: Store, number: int) -> bytes:
    name = named(number)
    return cache.read(name, PIECE, 10, 500, store.fetch(name))[0]


def test_pieces_are_fetched_once_and_a_second_start_finds_them(tmp_path: Path) -> None:
    store = Store()
    for _ in range(2):
        cache = NodeCache(str(tmp_path / "cache"), 10 * PIECE, 10)
        assert [read(cache, store, number) for number in (0, 1, 0)] == [content(named(number))[10:510] for number in (0, 1, 0)]
    assert store.asked == [named(0), named(1)]


def test_sixteen_threads_that_want_a_piece_fetch_it_once(tmp_path: Path) -> None:
    store, cache = Store(pause_s=0.05), NodeCache(str(tmp_path), 10 * PIECE, 10)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: read(cache, store, 3), range(16))) == {content(named(3))[10:510]}
    assert store.asked == [named(3)]


def test_the_least_recently_used_pieces_make_room_and_the_bytes_stay_within_the_bound(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    for number in range(4):
        read(cache, store, number)
        os.utime(tmp_path / named(number), (0, 1000 + number))
    read(cache, store, 0)  # used again: 1 is now the oldest
    for number in range(4, 30):
        assert read(cache, store, number) == content(named(number))[10:510]
        assert on_disk(tmp_path) <= 4 * PIECE
        if number == 4:
            assert (tmp_path / named(0)).exists()
            assert not (tmp_path / named(1)).exists()


def test_a_lost_ledger_is_counted_anew(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    for number in range(4):
        read(cache, store, number)
    (tmp_path / "ledger").unlink()
    for number in range(4, 8):
        read(cache, store, number)
        assert on_disk(tmp_path) <= 4 * PIECE


def test_who_reads_a_piece_while_it_is_removed_reads_on(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    read(cache, store, 0)
    with (tmp_path / named(0)).open("rb") as held:
        cache.drop(named(0))
        assert not (tmp_path / named(0)).exists()
        assert held.read() == content(named(0))
    assert read(cache, store, 0) == content(named(0))[10:510]
    assert store.asked == [named(0), named(0)]


def test_a_fetch_that_fails_leaves_nothing_and_the_next_reader_fetches_itself(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)

    def broken(deadline: float) -> Iterator[bytes]:
        yield content(named(0))[:300]
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        cache.read(named(0), PIECE, 0, 10, broken)
    assert on_disk(tmp_path) == 0
    for number in range(4):  # and no bytes are counted for it: four fit without an eviction
        read(cache, store, number)
    assert read(cache, store, 0) == content(named(0))[10:510]
    assert store.asked == [named(number) for number in range(4)]


def test_a_piece_cut_short_by_a_power_failure_is_fetched_again(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    read(cache, store, 0)
    os.truncate(tmp_path / named(0), 10)
    assert read(cache, store, 0) == content(named(0))[10:510]


def test_a_suspended_fetcher_stops_the_others_within_their_patience(tmp_path: Path) -> None:
    store, patient, hasty = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10), NodeCache(str(tmp_path), 4 * PIECE, 0.3)
    suspended, go_on = threading.Event(), threading.Event()

    def slow(deadline: float) -> Iterator[bytes]:
        suspended.set()
        go_on.wait(10)
        yield content(named(0))

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(patient.read, named(0), PIECE, 0, PIECE, slow)
        suspended.wait(10)
        with pytest.raises(Stopped, match="another process keeps it locked"):
            read(hasty, store, 0)
        go_on.set()
        assert first.result() == (content(named(0)), False)


@pytest.mark.parametrize("allowed", [0, PIECE // 2])
def test_a_full_disk_is_one_line(tmp_path: Path, allowed: int) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, before[1]))  # the kernel refuses to write more, as a full disk does
    try:
        with pytest.raises(Stopped, match="no room for the shard cache"):
            read(cache, store, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert on_disk(tmp_path) == 0
    assert read(cache, store, 0) == content(named(0))[10:510]


def test_a_disk_that_fails_is_one_line(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    (tmp_path / named(0)).mkdir()  # neither a piece nor to be replaced by one
    with pytest.raises(Stopped, match="the shard cache fails"):
        read(cache, store, 0)


def test_a_folder_that_cannot_be_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be made"):
        NodeCache(str(tmp_path / "file" / "cache"), 4 * PIECE, 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = tmp_path / f"albef-shards-{os.geteuid()}"
    mine.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="only you may write"):
        NodeCache(None, 4 * PIECE, 10)
    mine.unlink()
    assert NodeCache(None, 4 * PIECE, 10).folder == str(mine)
    assert mine.stat().st_mode & 0o777 == 0o700


def test_what_is_not_a_piece_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(bytes(100 * PIECE))
    store, cache = Store(), NodeCache(str(tmp_path), 2 * PIECE, 10)
    for number in range(5):
        read(cache, store, number)
    assert (tmp_path / "thesis.tex").stat().st_size == 100 * PIECE


def _hold_a_part(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    def stuck(deadline: float) -> Iterator[bytes]:
        yield b"half a piece"
        ready.set()
        time.sleep(60)

    NodeCache(folder, 4 * PIECE, 10).read(named(0), PIECE, 0, 10, stuck)


def test_a_killed_fetcher_is_succeeded_at_once_and_the_next_start_removes_what_it_left(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    context = multiprocessing.get_context("spawn")
    for succeed in (True, False):
        cache.drop(named(0))
        ready = context.Event()
        fetcher = context.Process(target=_hold_a_part, args=(str(tmp_path), ready))
        fetcher.start()
        assert ready.wait(60)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(read, cache, store, 0) if succeed else None
            time.sleep(0.2)
            assert waiting is None or not waiting.done()
            fetcher.kill()
            fetcher.join()
            if waiting is not None:
                assert waiting.result(timeout=5) == content(named(0))[10:510]
    assert (tmp_path / f"{named(0)}.part").exists()
    NodeCache(str(tmp_path), 4 * PIECE, 10)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ledger"]


def test_a_forked_child_does_not_keep_its_dead_parent_s_lock(tmp_path: Path) -> None:
    store, cache = Store(), NodeCache(str(tmp_path), 4 * PIECE, 10)
    child = 0

    def forking(deadline: float) -> Iterator[bytes]:
        nonlocal child
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        raise DataError("the fetcher ends")
        yield b""

    try:
        with pytest.raises(DataError, match="the fetcher ends"):
            cache.read(named(0), PIECE, 0, 10, forking)
        began = time.monotonic()
        assert read(cache, store, 0) == content(named(0))[10:510]
        assert time.monotonic() - began < 5
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_child_forked_just_before_a_lock_was_noted_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, child, waiting = NodeCache(str(tmp_path), 4 * PIECE, 10), 0, []

    def forking(deadline: float) -> Iterator[bytes]:
        nonlocal child
        with monkeypatch.context() as before_noting:
            before_noting.setattr(node_cache, "_lockable", set())
            child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        waiting.append(pool.submit(cache.read, named(0), PIECE, 10, 500, never))
        time.sleep(0.3)  # by then it stands at the lock
        yield content(named(0))

    def never(deadline: float) -> Iterator[bytes]:
        raise AssertionError("fetched twice")
        yield b""

    with ThreadPoolExecutor(1) as pool:
        try:
            assert cache.read(named(0), PIECE, 10, 500, forking)[0] == content(named(0))[10:510]
            assert waiting[0].result(timeout=5)[0] == content(named(0))[10:510]
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_a_file_where_the_user_s_own_cache_folder_should_be_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"albef-shards-{os.geteuid()}"
    folder.write_text("a thesis")
    with pytest.raises(ConfigError, match=rf"^shard cache folder {folder}: [^\n]*$"):
        NodeCache(None, 4 * PIECE, 10)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ConfigError, match=rf"^shard cache folder {folder}/[^\n]*cannot be made[^\n]*$"):
        NodeCache(None, 4 * PIECE, 10)
    assert folder.read_text() == "a thesis"


def test_a_folder_where_a_piece_should_be_is_named_in_one_line(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path), 4 * PIECE, 10)
    (tmp_path / named(0)).mkdir()
    with pytest.raises(Stopped, match=rf"^{tmp_path}/{named(0)}: the shard cache fails \([^\n]*\); [^\n]*$"):
        cache.drop(named(0))
    with pytest.raises(ConfigError, match=rf"^shard cache folder {tmp_path}: cannot be used \([^\n]*\); [^\n]*$"):
        NodeCache(str(tmp_path), 1, 10)


def test_a_cache_folder_that_is_gone_while_a_piece_is_dropped_is_made_again(tmp_path: Path) -> None:
    cache = NodeCache(str(tmp_path / "cache"), 4 * PIECE, 10)
    read(cache, Store(), 0)
    shutil.rmtree(tmp_path / "cache")
    cache.drop(named(0))
    assert read(cache, Store(), 0) == content(named(0))[10:510]

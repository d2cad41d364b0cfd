"""Ranged requests to a store that fails: every byte comes once, or one line says why not."""

import http.server
import os
import pickle
import random
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec.config
import pytest
from faulty_front import FAULTS, RANGE_IGNORED, FaultyFront
from waiting import wait_until
from wire_proxy import WireProxy

from pipeline.core import stopping, storage
from pipeline.core.errors import ConfigError, DataError, Stopped
from shards.dataset import DamagedSample, DamagedShard
from shards.remote.ranges import RangeReader
from shards.remote.transport import Counters, Deadlines, Transport

from ..conftest import MakeDataset

QUICK = Deadlines(connect_s=5.0, stall_s=2.0, patience_s=30.0, first_pause_s=0.01, longest_pause_s=0.1)
SIZE = 1_000_003

MakeReader = Callable[..., RangeReader]


@pytest.fixture
def make_reader(tmp_path: Path) -> Iterator[MakeReader]:
    """`make_reader(deadlines=QUICK, ...)`: a reader of 50 kB pieces with a cache of its own."""
    readers = []

    def make(deadlines: Deadlines = QUICK, **options: int) -> RangeReader:
        options = {"cache_bytes": 10 * SIZE, "piece_bytes": 50_000, "requests_in_flight": 4, **options}
        readers.append(RangeReader(cache_dir=str(tmp_path / f"cache{len(readers)}"), deadlines=deadlines, **options))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture
def shard(s3_bucket: str) -> tuple[str, bytes]:
    """A remote object and its bytes."""
    data = random.Random(1).randbytes(SIZE)
    storage.write_bytes(f"{s3_bucket}/a.tar", data)
    return f"{s3_bucket}/a.tar", data


def port_of(endpoint: str) -> int:
    port = urlsplit(endpoint).port
    assert port is not None
    return port


def ask_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    storage.filesystem("s3://x")[0].clear_instance_cache()


def test_ranges_are_the_object_s_wherever_they_begin_and_end(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, data = shard
    reader, choice = make_reader(), random.Random(2)
    for start, length in [
        (0, SIZE),
        (0, 0),
        (SIZE, 0),
        (SIZE - 1, 1),
        (49_999, 2),
        *((choice.randrange(SIZE // 2), choice.randrange(200_000)) for _ in range(50)),
    ]:
        assert reader.read(path, start, length, SIZE) == data[start : start + length]
    assert reader.counters["requests"] == 21
    assert reader.counters["bytes_fetched"] == SIZE


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_fault_is_asked_again_at_its_byte_and_counted(
    fault: str, make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = shard
    with FaultyFront(port_of(s3_endpoint), share=0.6, seed=3, faults=(fault,)) as front:
        ask_at(front.endpoint, monkeypatch)
        reader = make_reader(piece_bytes=100_000)
        assert reader.read(path, 0, SIZE, SIZE) == data
        assert front.injected[fault] >= 5
        assert reader.counters[f"retries_{fault}"] == front.injected[fault]
        retries = sum(count for name, count in reader.counters.items() if name.startswith("retries_"))  # on a busy machine an answer may come too late as well
        assert reader.counters["requests"] == front.requests_at_risk == 11 + retries
        assert reader.counters["bytes_fetched"] == SIZE  # what came before a break is not fetched again


def test_a_store_that_ignores_the_range_now_and_then_is_asked_again(
    make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = shard
    with FaultyFront(port_of(s3_endpoint), share=0.5, seed=3, faults=(RANGE_IGNORED,)) as front:
        ask_at(front.endpoint, monkeypatch)
        reader = make_reader(piece_bytes=100_000)
        assert reader.read(path, 0, SIZE, SIZE) == data
        assert reader.counters["retries_range_ignored"] == front.injected[RANGE_IGNORED] >= 5
        assert reader.counters["bytes_fetched"] == SIZE


def test_a_store_that_never_knows_ranges_ends_the_run_and_costs_no_shard(
    make_dataset: MakeDataset, make_reader: MakeReader, s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset([3], f"{s3_bucket}/set")
    with FaultyFront(port_of(s3_endpoint), share=1, seed=3, faults=(RANGE_IGNORED,)) as front:
        ask_at(front.endpoint, monkeypatch)
        dataset.reader = make_reader()
        with pytest.raises(
            DataError, match=r"00000\.tar: its store answers a request for bytes 0 on with the whole object[^\n]*take one that knows ranges$"
        ) as raised:
            dataset.read(1)
    assert not isinstance(raised.value, DamagedSample)


class OddServer(http.server.BaseHTTPRequestHandler):
    """Serves `body` under every path: `whole` ignores ranges, else an answer to one has `longest` bytes at most, which HTTP allows."""

    body, whole, longest = random.Random(5).randbytes(120_000), False, 30_000

    def do_HEAD(self) -> None:
        self._answer(200, b"", {"Content-Length": str(len(self.body)), "Accept-Ranges": "bytes"})

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.whole or asked is None:
            self._answer(200, self.body, {"Content-Length": str(len(self.body))})
        else:
            first, last = int(asked[1]), min(int(asked[2]), int(asked[1]) + self.longest - 1, len(self.body) - 1)
            part = self.body[first : last + 1]
            self._answer(206, part, {"Content-Length": str(len(part)), "Content-Range": f"bytes {first}-{last}/{len(self.body)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def odd_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OddServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_short_answers_of_other_stores_are_asked_on_and_only_a_short_object_is_damage(make_reader: MakeReader, odd_server: str) -> None:
    data, reader = OddServer.body, make_reader(piece_bytes=100_000)
    assert reader.read(f"{odd_server}/a.tar", 0, len(data), len(data)) == data
    assert reader.counters["retries_truncated"] == 3
    assert reader.counters["bytes_fetched"] == len(data)
    with pytest.raises(DataError, match=r"a\.tar: has 120000 bytes, the manifest says 140000; copy the shard again") as raised:
        make_reader().read(f"{odd_server}/a.tar", 110_000, 20_000, 140_000)
    assert raised.value.__cause__ is None


def test_the_whole_object_from_another_store_is_never_taken_for_the_range(make_reader: MakeReader, odd_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OddServer, "whole", True)
    with pytest.raises(DataError, match="take one that knows ranges") as raised:
        make_reader().read(f"{odd_server}/a.tar", 60_000, 10, len(OddServer.body))
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("hanging", [False, True])
def test_a_store_that_is_gone_stops_the_run_within_the_patience(
    hanging: bool, make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = shard
    with WireProxy(port_of(s3_endpoint)) as proxy:
        ask_at(proxy.endpoint, monkeypatch)
        reader = make_reader(Deadlines(connect_s=0.5, stall_s=0.5, patience_s=2.0))
        assert reader.read(path, 0, 10, SIZE) == data[:10]
        if hanging:
            proxy.hang()
        else:
            proxy.die()
        began = time.monotonic()
        with pytest.raises(Stopped, match=r"a\.tar: cannot be read .* run the same command again when the storage is back"):
            reader.read(path, 500_000, 10, SIZE)
        assert time.monotonic() - began < 4
        assert reader.counters["retries_stalled" if hanging else "retries_connect"] >= 2
        assert reader.read(path, 20, 10, SIZE) == data[20:30]  # what the node has, it has


@pytest.mark.slow
def test_a_store_that_is_back_after_ten_seconds_costs_nothing_but_the_wait(
    make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = shard
    with WireProxy(port_of(s3_endpoint)) as proxy:
        ask_at(proxy.endpoint, monkeypatch)
        reader = make_reader(Deadlines(connect_s=1.0, stall_s=1.0, patience_s=60.0, longest_pause_s=1.0))
        proxy.die()
        threading.Timer(10, proxy.revive).start()
        assert reader.read(path, 0, SIZE, SIZE) == data
        assert reader.counters["retries_connect"] >= 5


def test_what_a_store_will_not_give_is_the_user_s_to_mend(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, data = shard
    with pytest.raises(DataError, match=r"b\.tar: not found; the manifest lists it"):
        make_reader().read(path.replace("a.tar", "b.tar"), 0, 10, SIZE)
    for total in (SIZE - 1, SIZE + 1):
        with pytest.raises(DataError, match=rf"has {SIZE} bytes, the manifest says {total}"):
            make_reader().read(path, 0, 10, total)
    with pytest.raises(DataError, match="is shorter than 2000000 bytes"):
        make_reader().read(path, 1_500_000, 10, 2_000_000)
    with pytest.raises(DataError, match="the manifest says 1000003; run"):
        make_reader().read(path, 0, SIZE + 1, SIZE)
    assert make_reader().read(path, 5, 10, SIZE) == data[5:15]


def test_a_shard_that_vanishes_from_the_store_is_lost_and_one_that_is_forbidden_ends_the_run(
    make_dataset: MakeDataset, make_reader: MakeReader, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset([3, 3], f"{s3_bucket}/set")
    dataset.reader = make_reader()
    for shard in (0, 1):
        dataset.indexes(shard)
    storage.remove(f"{s3_bucket}/set/00001.tar")
    with pytest.raises(DamagedShard, match=r"00001\.tar: not found"):
        dataset.read(3)
    monkeypatch.setitem(fsspec.config.conf, "s3", {**fsspec.config.conf.get("s3", {}), "anon": True})
    storage.filesystem("s3://x")[0].clear_instance_cache()
    dataset.reader = make_reader()
    with pytest.raises(DataError, match="no permission") as forbidden:
        dataset.read(0)
    assert not isinstance(forbidden.value, DamagedSample)


def test_a_cache_too_small_for_the_pieces_in_flight_is_refused(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    with pytest.raises(ConfigError, match="249999 bytes: 4 pieces of 50000 bytes in flight and one to read need at least 250000"):
        make_reader(cache_bytes=249_999).read(shard[0], 0, 10, SIZE)


def test_another_content_of_the_same_name_is_another_piece_and_fresh_asks_the_store_again(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, old = shard
    reader = make_reader()
    assert reader.read(path, 0, SIZE, SIZE, identity="old") == old
    new = random.Random(4).randbytes(SIZE)
    storage.write_bytes(path, new)
    assert reader.read(path, 0, 10, SIZE, identity="old") == old[:10]
    assert reader.read(path, 0, 10, SIZE, identity="new") == new[:10]
    assert reader.read(path, 49_990, 20, SIZE, fresh=True, identity="old") == new[49_990:50_010]
    assert reader.read(path, 60_000, 10, SIZE, identity="old") == new[60_000:60_010]
    assert reader.read(path, 100_000, 10, SIZE, identity="old") == old[100_000:100_010]  # another piece, not named fresh


def test_a_range_that_is_announced_is_there_when_it_is_read(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, data = shard
    reader = make_reader()
    reader.prefetch(path, 0, SIZE, SIZE)
    reader.prefetch(path.replace("a.tar", "missing.tar"), 0, 100_000, SIZE)  # nobody has to care, until it is read
    deadline = time.monotonic() + 30
    while (reader.counters.get("bytes_fetched", 0), reader.counters.get("prefetch_failed", 0)) != (SIZE, 2):
        assert time.monotonic() < deadline, reader.counters
        time.sleep(0.01)
    requests = reader.counters["requests"]
    assert reader.read(path, 0, SIZE, SIZE) == data
    assert reader.counters["requests"] == requests
    assert reader.counters["cache_hits"] == 21


def test_closing_ends_a_prefetch_that_waits_for_a_dead_store(
    make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WireProxy(port_of(s3_endpoint)) as proxy:
        ask_at(proxy.endpoint, monkeypatch)
        reader = make_reader(Deadlines(first_pause_s=30.0))
        proxy.die()
        reader.prefetch(shard[0], 0, SIZE, SIZE)
        wait_until(lambda: reader.counters.get("retries_connect", 0) >= 4)
        began = time.monotonic()
        reader.close()
        assert time.monotonic() - began < 5
        before = reader.counters
        reader.prefetch(shard[0], 0, SIZE, SIZE)  # from now on there is nobody to ask
        assert reader.counters == before


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_dead_store(
    make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WireProxy(port_of(s3_endpoint)) as proxy:
        ask_at(proxy.endpoint, monkeypatch)
        reader = make_reader(Deadlines(patience_when_stopping_s=1.0, longest_pause_s=0.2))
        proxy.die()
        monkeypatch.setattr(stopping, "_received", [])
        threading.Timer(1.0, lambda: stopping._received.append("SIGTERM")).start()
        began = time.monotonic()
        with pytest.raises(Stopped, match="run the same command again"):
            reader.read(shard[0], 0, 10, SIZE)
        assert 1.5 < time.monotonic() - began < 10


def test_a_pickled_reader_begins_with_the_same_options(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, data = shard
    reader = make_reader()
    reader.read(path, 0, 10, SIZE)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.options == reader.options
    assert copy.counters == {}
    assert copy.read(path, 0, 10, SIZE) == data[:10]
    assert copy.counters == {"cache_hits": 1}  # the first one's piece


def test_a_forked_child_reads_on_connections_of_its_own(make_reader: MakeReader, shard: tuple[str, bytes]) -> None:
    path, data = shard
    reader = make_reader()
    reader.prefetch(path, 0, 500_000, SIZE)  # threads and connections that the child does not have
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = reader.read(path, 0, SIZE, SIZE) == data
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if same else 1)  # never back into the tests: two processes would go on with them
    assert reader.read(path, 0, SIZE, SIZE) == data
    assert os.waitpid(child, 0)[1] == 0


def test_the_settings_of_s3fs_hold_for_ranges_too(make_reader: MakeReader, shard: tuple[str, bytes], s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, inner = storage.filesystem(shard[0])
    fs.chmod(inner, "public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    path, data = shard
    for options in ({"anon": True}, {"key": "test", "secret": "test"}):
        monkeypatch.setitem(fsspec.config.conf, "s3", {**fsspec.config.conf.get("s3", {}), "endpoint_url": s3_endpoint, **options})
        storage.filesystem("s3://x")[0].clear_instance_cache()
        assert make_reader().read(path, 0, 10, SIZE) == data[:10]


def test_other_stores_are_read_through_fsspec(make_reader: MakeReader) -> None:
    data = random.Random(5).randbytes(120_000)
    storage.write_bytes("memory://set/a.tar", data)
    reader = make_reader()
    assert reader.read("memory://set/a.tar", 40_000, 70_000, len(data)) == data[40_000:110_000]
    with pytest.raises(DataError, match="not found"):
        reader.read("memory://set/b.tar", 0, 10, 100)
    with pytest.raises(DataError, match="has 120000 bytes, the manifest says 140000"):
        make_reader().read("memory://set/a.tar", 110_000, 20_000, 140_000)


def test_a_store_that_trickles_is_given_up_at_the_deadline(shard: tuple[str, bytes]) -> None:
    counters = Counters()
    path = shard[0].replace("a.tar", "large.tar")
    storage.write_bytes(path, bytes(2_000_003))
    with pytest.raises(Stopped, match="of 2000003 bytes came in the time there was"):
        list(Transport(QUICK, counters).chunks(path, 0, 2_000_003, 2_000_003, time.monotonic() - 1, threading.Event()))
    assert counters.snapshot()["retries_slow"] == 1

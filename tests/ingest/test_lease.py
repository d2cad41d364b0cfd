"""Of all who want a shard one has it, an orphan notices, and a dead holder is not waited for longer than the lease."""

import threading
import time
from pathlib import Path

import pytest

from ingest import lease
from ingest.lease import Lease, LeaseLost
from pipeline.core import storage

LEASE_S = 0.5


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.getfixturevalue('s3_bucket')}/leases/00000" if request.param == "s3" else str(tmp_path / "leases" / "00000")


def test_a_generation_is_created_once(folder: str) -> None:
    # One after the other: moto looks and then writes, in threads, where S3 does both at once; tests/core/test_storage.py has the race on disk.
    assert [storage.create(f"{folder}/000001", b"x") for _ in range(3)] == [True, False, False]


def test_a_living_holder_is_waited_for_and_then_the_next_one_has_it(folder: str) -> None:
    order: list[str] = []

    def wants_it_too() -> None:
        with lease.claim(folder, LEASE_S):
            order.append("second")

    with lease.claim(folder, LEASE_S) as first:
        thread = threading.Thread(target=wants_it_too)
        thread.start()
        time.sleep(3 * LEASE_S)
        first.check()
        order.append("first done")
    lease.release(first)
    thread.join(20)
    assert order == ["first done", "second"]


def test_a_silent_holder_loses_it_and_notices(folder: str) -> None:
    silent = lease.claim(folder, LEASE_S)  # never entered: it gives no sign of life
    with lease.claim(folder, LEASE_S) as heir:
        heir.check()
        with pytest.raises(LeaseLost, match="another worker took over"):
            silent.check()
    lease.release(heir)
    with pytest.raises(LeaseLost):
        silent.check()


def test_a_holder_known_to_be_dead_is_not_waited_for(folder: str) -> None:
    lease.claim(folder, 60)
    started = time.monotonic()
    assert lease.claim(folder, 60, holder_is_dead=True).generation == 2
    assert time.monotonic() - started < 10


def test_a_running_holder_learns_of_its_loss_from_its_own_beat(folder: str) -> None:
    with Lease(folder, lease.claim(folder, LEASE_S).generation, LEASE_S) as orphan:
        lease.claim(folder, LEASE_S, holder_is_dead=True)
        deadline = time.monotonic() + 20
        while not orphan.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert orphan.lost


def test_who_waited_for_one_that_was_given_back_does_not_take_it_from_the_next(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, heir = lease.claim(folder, LEASE_S), []

    def given_back_and_taken(*_: object) -> None:
        monkeypatch.undo()
        lease.release(first)
        heir.append(lease.claim(folder, LEASE_S))

    monkeypatch.setattr(lease, "_wait_while_alive", given_back_and_taken)
    assert lease.claim(folder, LEASE_S).generation == heir[0].generation + 1, "its turn comes after the heir's silence"

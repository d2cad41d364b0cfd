"""kill -9 of whole training runs at any moment, half of the kills within a save, on disk, on a failing S3, and of two ranks: no step is lost.

A few kills here, 50 in all with `make chaos-train`, which writes docs/benchmarks/chaos_train.json.
"""

import contextlib
import functools
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import tiny_run
from chaos_figures import record_counts
from faulty_front import EVERY, FaultyFront
from run_of_ranks import IMPATIENT_S3, Finished, Ranks, Run, wait_for

from training import checkpoint
from training.checkpoint.layout import complete, latest_of
from training.watch.heartbeat import read_beat

KILLS = {"disk": 3, "s3": 2}
if "CHAOS_KILLS" in os.environ:  # of the three places together
    KILLS = {place: round(int(os.environ["CHAOS_KILLS"]) * share) for place, share in {"disk": 0.4, "s3": 0.4, "two ranks": 0.2}.items()}
FIGURES = os.environ.get("CHAOS_JSON")
SEED = int(os.environ.get("CHAOS_SEED", "6"))
KILLS_PER_RUN = 8  # then it may finish, and is compared
STEPS = 120
SAVE_EVERY_STEPS = {"disk": 2, "s3": 5, "two ranks": 2}  # a save lasts about as long as so many steps
FAULTY_SHARE = 0.02  # of all requests to the store


@dataclass
class Campaign:
    """Trains the same model again and again, killing as it goes."""

    start: Callable[[str], Run]
    save_every_steps: int
    first_checkpoint_s: float  # seconds from exec on, as they last were
    draw: random.Random
    hits: Counter[str] = field(default_factory=Counter)
    taken_again: list[int] = field(default_factory=list)  # steps, a kill
    runs: int = 0

    @property
    def within_saves(self) -> int:
        return sum(number for hit, number in self.hits.items() if "within a save" in hit)

    def missing(self, kills: int) -> int:
        """Of so many kills, half of them within a save, which may be over before a kill comes that was meant for it."""
        return max(kills - self.hits.total(), kills // 2 - self.within_saves)

    def train(self, kills: int) -> Finished:
        """One run, killed `kills` times on its way if it takes so long."""
        run = self.start(f"run-{self.runs}")
        self.runs += 1
        before = self.hits.total()
        while self.hits.total() - before < kills and not run.is_finished():
            self.kill_once(run, within_a_save=2 * self.within_saves < self.hits.total())
        run.finish()
        return run.finished()

    def kill_once(self, run: Run, within_a_save: bool) -> None:
        """After it, `latest` names a checkpoint that is whole, no older than before, and no more than two saves behind."""
        begun_at, remains, file, log_size = run.latest(), run.half_done(), run.metrics_file(), run.log_size()
        began = time.monotonic()
        with run.living() as ranks:
            if within_a_save:
                wait_for(ranks, lambda: run.latest() > begun_at)
                self.first_checkpoint_s = time.monotonic() - began
                _let_pass(ranks, self.draw.uniform(0, 0.5))
                wait_for(ranks, run.half_done)
            else:
                _let_pass(ranks, self.draw.uniform(0, 1.5 * self.first_checkpoint_s))
            victims = self._kill_some(ranks)
            pid = ranks[0].pid
        if not victims:
            return
        latest, opened = run.latest(), run.metrics_file() != file
        saving = run.half_done() and (latest > begun_at or not remains)  # else another kill left that
        moment = "within a save" if saving else _moment(run, pid, opened, run.log_size() > log_size)
        self.hits[f"{victims}, {moment}"] += 1
        assert latest >= begun_at, "a checkpoint was lost"
        if latest:
            found = checkpoint.read(run.checkpoints)
            assert found.step == latest
            found.verify()
        if opened:
            again = run.steps_recorded() - latest
            assert 0 <= again <= 2 * self.save_every_steps
            self.taken_again.append(again)

    def _kill_some(self, ranks: Ranks) -> str | None:
        """SIGKILL for one rank or for all; which, or None when all had ended. Those that are left are killed a little later, as launchers do it."""
        ended = [process.poll() for process in ranks]
        assert not any(ended), f"ended by itself with {ended}"
        if None not in ended:
            return None
        killed = self.draw.sample(range(len(ranks)), k=self.draw.randint(1, len(ranks)))
        for rank in killed:
            ranks[rank].kill()
        if len(killed) < len(ranks):
            time.sleep(self.draw.uniform(0, 1))
        return "the process" if len(ranks) == 1 else "all ranks" if len(killed) == len(ranks) else f"rank {killed[0]}"


def _moment(run: Run, pid: int, opened: bool, logged: bool) -> str:
    """What it was at, judged by what it has left."""
    if complete(run.checkpoints) and complete(run.checkpoints)[-1] > (latest_of(run.checkpoints) or ""):
        return "between a manifest and latest"
    if not logged:
        return "importing"
    if not opened:
        return "opening data and checkpoint"
    beat = read_beat(run.folder / "train" / "heartbeat", 0)
    ending = run.is_finished() or (beat is not None and beat.pid == pid and beat.phase == "end") or run.latest() == STEPS
    return "ending" if ending else "between saves"


def _let_pass(ranks: Ranks, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        ranks[0].wait(seconds)


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Finished, float]]:
    """Ranks -> what an uninterrupted run of so many comes to, and after how many seconds its first checkpoint was there."""

    @functools.cache
    def uninterrupted(ranks: int) -> tuple[Finished, float]:
        folder = tmp_path_factory.mktemp("whole")
        config = tiny_run.configuration(folder, dataset, max_steps=STEPS, save_every_steps=2)
        run = Run(folder, str(folder / "train" / "checkpoints"), config, ranks, {})
        first_checkpoint_s = run.finish()
        return run.finished(), first_checkpoint_s

    return uninterrupted


@pytest.fixture
def front(request: pytest.FixtureRequest, place: str) -> Iterator[FaultyFront | None]:
    """Between the runs and the store."""
    if place != "s3":
        yield None
        return
    port = urlsplit(request.getfixturevalue("s3_endpoint")).port
    assert port
    with FaultyFront(port, FAULTY_SHARE, SEED, ("status_500", "status_503", "reset", "stalled"), EVERY) as standing_between:
        yield standing_between


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", list(KILLS))
def test_killed_at_random_moments_training_gives_every_bit_of_the_uninterrupted_run(
    place: str, front: FaultyFront | None, whole: Callable[[int], tuple[Finished, float]], dataset: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ranks = 2 if place == "two ranks" else 1
    root = request.getfixturevalue("s3_bucket") if front else str(tmp_path / "checkpoints")
    environment = {"AWS_ENDPOINT_URL": front.endpoint, "FSSPEC_S3": json.dumps(IMPATIENT_S3)} if front else {}

    def start(name: str) -> Run:
        folder = tmp_path / name
        config = tiny_run.configuration(folder, dataset, max_steps=STEPS, save_every_steps=SAVE_EVERY_STEPS[place], checkpoint_folder=f"{root}/{name}")
        return Run(folder, f"{root}/{name}", config, ranks, environment)

    expected, first_checkpoint_s = whole(ranks)
    assert [record["step"] for record in expected.figures] == list(range(1, STEPS + 1))
    campaign = Campaign(start, SAVE_EVERY_STEPS[place], first_checkpoint_s, random.Random(SEED))
    while (missing := campaign.missing(KILLS[place])) and campaign.hits.total() < KILLS[place] + 10:
        assert campaign.train(min(KILLS_PER_RUN, missing)) == expected
    assert campaign.within_saves >= KILLS[place] // 2
    if FIGURES:
        record(place, campaign, front)


def record(place: str, campaign: Campaign, front: FaultyFront | None) -> None:
    counts: dict[str, float] = {"kills": campaign.hits.total(), "kills within a save": campaign.within_saves}
    counts |= {"runs that came out with every loss and tensor of the uninterrupted one": campaign.runs}
    counts |= {"steps taken again per kill in the loop, mean": round(sum(campaign.taken_again) / len(campaign.taken_again), 2)}
    counts |= {"steps taken again per kill in the loop, most": max(campaign.taken_again)}
    counts |= {f"kills of {hit}": number for hit, number in campaign.hits.most_common()}
    counts |= {f"requests met by {fault}": number for fault, number in (front.injected if front else Counter[str]()).items()}
    note = f"{campaign.runs} runs of {STEPS} steps, a checkpoint every {campaign.save_every_steps}, seed {SEED}"
    record_counts(Path(str(FIGURES)), f"CHAOS_KILLS={sum(KILLS.values())} make chaos-train", place, counts, note)

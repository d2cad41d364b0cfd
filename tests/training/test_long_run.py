"""Two ranks whose disk fills, whose stores fail, who are killed, asked to stop and stopped by their machines: the losses are those of a calm run.

Some hundred steps of a tiny model here; 2,000 of the demo's with `make chaos-long`, which writes docs/benchmarks/chaos_long.json.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest
import tiny_run
import yaml
from chaos_figures import record_counts
from faulty_front import EVERY, FaultyFront
from run_of_ranks import IMPATIENT_S3, Finished, Ranks, Run
from small_disk import fill, small_disk

from training.watch.heartbeat import read_beat

DEMO = os.environ.get("CHAOS_DEMO")  # a finished run of the demo, for the long campaign
FIGURES = os.environ.get("CHAOS_JSON")
SEED = int(os.environ.get("CHAOS_SEED", "8"))
RANKS = 2
FAULTY_SHARE = 0.02  # of all requests to the store
GRACE_S = 5.0  # that launchers leave the other ranks when one has ended


@dataclass(frozen=True)
class Scale:
    """How long a run is, and what befalls it how often."""

    steps: int
    save_every_steps: int
    disk_mib: int
    hang_report_s: float
    hang_exit_s: float
    full_s: float
    events: Mapping[str, int]


SCALE = Scale(600, 40, 16, 2, 6, 4, {"kill": 1, "termination": 1, "stall": 1, "stall for good": 1, "full disk": 1})
if DEMO:
    SCALE = Scale(2000, 50, 256, 10, 30, 60, {"kill": 8, "termination": 2, "stall": 2, "stall for good": 1, "full disk": 1})


@dataclass
class Campaign:
    """Starts a run again until it is finished, and lets events befall it at steps drawn beforehand."""

    run: Run
    draw: random.Random
    happened: Counter[str] = field(default_factory=Counter)
    ended_with: Counter[str] = field(default_factory=Counter)  # the first rank of each life that did
    taken_again: list[int] = field(default_factory=list)  # steps, by life that did not finish

    def train(self) -> Finished:
        names = [name for name, count in SCALE.events.items() for _ in range(count)]
        self.draw.shuffle(names)
        coming = deque(zip(sorted(self.draw.sample(range(SCALE.steps // 20, SCALE.steps * 9 // 10), k=len(names))), names, strict=True))
        while not self.run.is_finished():
            with self.run.living() as ranks:
                self._live_through(ranks, coming)
                self._end_together(ranks)
            if not self.run.is_finished():
                self.taken_again.append(self.run.steps_recorded() - self.run.latest())
        assert not coming, f"finished before {list(coming)}"
        return self.run.finished()

    def _live_through(self, ranks: Ranks, coming: deque[tuple[int, str]]) -> None:
        while all(process.poll() is None for process in ranks):
            if coming and self._steps_taken_by(ranks) >= coming[0][0]:
                name = coming.popleft()[1]
                self.happened[name] += 1
                EVENTS[name](self, ranks)
            time.sleep(0.02)

    def _steps_taken_by(self, ranks: Ranks) -> int:
        """0 until they have taken one of their own."""
        beat = read_beat(self.run.folder / "train" / "heartbeat", 0)
        return beat.step if beat and beat.pid == ranks[0].pid and beat.phase in ("data", "step") else 0

    def _end_together(self, ranks: Ranks) -> None:
        """As launchers do it: when one rank has ended, the others have little time."""
        codes = [process.poll() for process in ranks]
        deadline = time.monotonic() + GRACE_S
        for process in ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        ended = {code for code in codes if code is not None}
        what = "SIGKILL" if -signal.SIGKILL in ended else f"exit code {max(ended)}"  # of a rank that was killed the others may have died by now
        self.ended_with[what] += 1
        assert what in ("SIGKILL", "exit code 0", "exit code 4"), "\n".join(
            (self.run.folder / f"output-{rank}.txt").read_text()[-3000:] for rank in range(RANKS)
        )

    def kill(self, ranks: Ranks) -> None:
        for rank in self.draw.sample(range(RANKS), k=self.draw.randint(1, RANKS)):
            ranks[rank].kill()
            ranks[rank].wait()

    def terminate(self, ranks: Ranks) -> None:
        """One rank is asked; all stop after the same step."""
        self.draw.choice(ranks).terminate()
        assert [process.wait(60) for process in ranks] == [4] * RANKS

    def stall(self, ranks: Ranks) -> None:
        """Until it is reported, and before the others would end; then the run goes on."""
        before = self._hang_reports()
        with self._stopped(ranks[1]):
            self._wait_while(ranks, lambda: self._hang_reports() == before)
        assert self._hang_reports() == before + 1

    def stall_for_good(self, ranks: Ranks) -> None:
        """The other rank ends by itself, with the exit code that says: start me again."""
        ranks[1].send_signal(signal.SIGSTOP)
        assert ranks[0].wait(5 * SCALE.hang_exit_s) == 4

    def fill_disk(self, ranks: Ranks) -> None:
        filler, room = self.run.folder / "of-another-user", list[int]()
        deadline = time.monotonic() + SCALE.full_s
        while time.monotonic() < deadline:
            fill(filler)
            room.append(shutil.disk_usage(self.run.folder).free)
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.2)
        filler.unlink()
        assert median(room) == 0, "it was full, but for what the run itself removed"

    @contextlib.contextmanager
    def _stopped(self, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def _hang_reports(self) -> int:
        return len(list((self.run.folder / "train" / "hang").glob("step-*/report.txt")))

    def _wait_while(self, ranks: Ranks, condition: Callable[[], bool]) -> None:
        while condition():
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.02)


EVENTS: dict[str, Callable[[Campaign, Ranks], None]] = {
    "kill": Campaign.kill,
    "termination": Campaign.terminate,
    "stall": Campaign.stall,
    "stall for good": Campaign.stall_for_good,
    "full disk": Campaign.fill_disk,
}


def configuration(folder: Path, dataset: str, **changes: Any) -> Path:
    """Of the scale's model."""
    common = {"max_steps": SCALE.steps, "save_every_steps": SCALE.save_every_steps, "compare_ranks_every_steps": 100,
              "hang_report_s": SCALE.hang_report_s, "hang_exit_s": SCALE.hang_exit_s, "cache_folder": str(folder / "cache"), **changes}  # fmt: skip
    path = tiny_run.configuration(folder, dataset, **common)
    if DEMO:
        training = yaml.safe_load((Path(DEMO) / "config.yaml").read_text())["training"]
        training |= {**common, "dataset": dataset, "epochs": 100, "evaluate_every_steps": None, "torch_threads": 1, "group_size": 32}
        path.write_text(yaml.safe_dump({"run": {"folder": str(folder)}, "training": training}))
    return path


@pytest.fixture(scope="module")
def local_dataset(dataset: Path) -> Path:
    return Path(DEMO) / "dataset" if DEMO else dataset


@pytest.fixture(scope="module")
def calm(local_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What nothing befell."""
    folder = tmp_path_factory.mktemp("calm")
    run = Run(folder, str(folder / "train" / "checkpoints"), configuration(folder, str(local_dataset)), RANKS, {})
    run.finish(timeout_s=3600)
    return run.finished()


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_whatever_befalls_a_run_its_losses_are_those_of_the_calm_one(
    place: str, calm: Finished, local_dataset: Path, s3_endpoint: str, s3_bucket: str, tmp_path: Path
) -> None:
    fsspec.filesystem("s3").put(f"{local_dataset}/", f"{s3_bucket}/dataset/", recursive=True)
    port = urlsplit(s3_endpoint).port
    assert port
    faults = ("status_500", "status_503", "reset", "stalled")
    with small_disk(tmp_path / "run", SCALE.disk_mib) as folder, FaultyFront(port, FAULTY_SHARE, SEED, faults, EVERY) as front:
        checkpoints = f"{s3_bucket}/checkpoints" if place == "s3" else str(folder / "train" / "checkpoints")
        config = configuration(folder, f"{s3_bucket}/dataset", checkpoint_folder=checkpoints)
        environment = {"AWS_ENDPOINT_URL": front.endpoint, "FSSPEC_S3": json.dumps(IMPATIENT_S3)}
        campaign = Campaign(Run(folder, checkpoints, config, RANKS, environment), random.Random(SEED))
        found = campaign.train()
    assert [record["step"] for record in found.figures] == list(range(1, SCALE.steps + 1))
    assert found.figures == calm.figures
    assert found == calm
    assert front.injected.total()
    if FIGURES:
        record(place, campaign, front)


def record(place: str, campaign: Campaign, front: FaultyFront) -> None:
    counts: dict[str, float] = {"steps whose losses are the calm run's, bit for bit": SCALE.steps}
    counts |= {f"events: {name}": number for name, number in campaign.happened.items()}
    counts |= {f"ended with {what}": number for what, number in campaign.ended_with.items()}
    counts |= {"steps taken again, in all": sum(campaign.taken_again), "steps taken again, most": max(campaign.taken_again)}
    counts |= {f"requests met by {fault}": number for fault, number in front.injected.items()}
    note = f"{RANKS} ranks, a checkpoint every {SCALE.save_every_steps} steps, a full disk for {SCALE.full_s:g} s, seed {SEED}"
    record_counts(Path(str(FIGURES)), "make chaos-long", place, counts, note)

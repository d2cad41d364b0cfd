"""What training's engine costs: its loop with reading, log and checkpoints, beside the bare fused step over the same batches, in turn in one process."""

import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import torch

from pipeline.app.bench import photo_shards
from pipeline.app.bench.row import BenchRow, alone, compared, median_interval
from pipeline.app.bench.steps import Sizes, Steps
from pipeline.app.bench.usage import cpu_seconds
from pipeline.core import logs
from shards.dataset import Dataset
from training import checkpoint
from training.config import TrainingConfig
from training.data import build_loader
from training.distributed import World
from training.engine import run
from training.tokenizer import SPECIAL

log = logging.getLogger(__name__)
STEPS, LOG_EVERY_STEPS, PICTURES, BATCHES = 50, 20, 256, 4
PEER = "the bare fused step"


@dataclass(frozen=True)
class Spent:
    """Of as many steps: seconds of all threads, and on the clock."""

    cpu_s: float
    wall_s: float


def spent_since(cpu_s: float, wall_s: float) -> Spent:
    return Spent(cpu_seconds() - cpu_s, time.perf_counter() - wall_s)


class Turns:
    """What the engine calls after each checkpoint: the steps since the last one were its turn, now it is the bare step's.

    The engine's first turn, which has its start in it, is not counted.
    """

    def __init__(self, config: TrainingConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        self.engine: list[Spent] = []
        self.bare: list[Spent] = []
        self._bare_steps: Callable[[int], None] | None = None
        self._began = (0.0, 0.0)

    def __call__(self, path: str) -> dict[str, float]:
        if self._bare_steps is None:
            self._bare_steps = bare_steps(self.config, path)
            self._bare_steps(2)  # AdamW makes its moments in the first one
        else:
            self.engine.append(spent_since(*self._began))
            began = cpu_seconds(), time.perf_counter()
            self._bare_steps(self.steps)
            self.bare.append(spent_since(*began))
            log.info("turn %d: %d steps of the engine %.1f CPU-s, bare %.1f", len(self.bare), self.steps, self.engine[-1].cpu_s, self.bare[-1].cpu_s)
        self._began = cpu_seconds(), time.perf_counter()
        return {}


def bare_steps(config: TrainingConfig, path: str) -> Callable[[int], None]:
    """Takes so many steps from the checkpoint's sizes, over the run's first batches again and again."""
    saved = checkpoint.read(path)
    steps = Steps(Sizes(saved.model_config, config.global_batch_size, config.queue_size), config.group_size, torch.device("cpu"))
    world = World(0, 1, torch.device("cpu"))
    loader = build_loader(config, Dataset.open(str(config.dataset)), saved.tokenizer(), world, config.global_batch_size, 1)
    batches = cycle([micro_batches[0] for micro_batches, _ in islice(loader.from_position(loader.start()), BATCHES)])
    loader.close()

    def take(number: int) -> None:
        for batch in islice(batches, number):
            steps.fused(batch)

    return take


def overhead(case: str, sizes: Sizes, rounds: int, steps: int = STEPS) -> list[BenchRow]:
    """The engine in fp32 on one rank, a log line every 20 and a checkpoint every `steps` steps, beside the bare step.

    In a process of its own, since the engine joins a process group and names it in the environment.
    """
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        engine, bare = pool.submit(_turns, sizes, rounds, steps, Path(work)).result()
    note = (
        f"{sizes.pairs} pairs a step, {sizes.model.image_size} px, queue {sizes.queue_size}, fp32, one thread of torch; turns of {steps} steps, each of the "
        f"engine's with reading, {steps // LOG_EVERY_STEPS} log lines and a checkpoint that is written and verified"
    )
    on_the_clock = f"{note}; says little where others use the cores"
    over = [100 * (one.cpu_s / other.cpu_s - 1) for one, other in zip(engine, bare, strict=True)]
    low, high = median_interval(over)
    pairs = steps * sizes.pairs
    return [
        compared(case, "pairs/CPU-s", [pairs / turn.cpu_s for turn in engine], [pairs / turn.cpu_s for turn in bare], PEER, note),
        compared(f"{case}-wall", "pairs/s", [pairs / turn.wall_s for turn in engine], [pairs / turn.wall_s for turn in bare], PEER, on_the_clock),
        alone(f"{case}-overhead", "% more CPU-s", over, f"median of {rounds} turns, 95 % interval of the median {low:.1f} to {high:.1f}"),
    ]


def _turns(sizes: Sizes, rounds: int, steps: int, work: Path) -> tuple[list[Spent], list[Spent]]:
    logs.configure()
    dataset = photo_shards.photo_shards(work, photo_shards.SMALL, max(PICTURES, BATCHES * sizes.pairs))
    fillers = (f"[unused{number}]" for number in range(sizes.model.vocab_size))
    vocabulary = list(islice((*SPECIAL, *photo_shards.WORDS, *fillers), sizes.model.vocab_size))
    (work / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = TrainingConfig.model_validate({
        "dataset": str(dataset.folder), "model": sizes.model, "init": {"vision": None, "text": None, "tokenizer": str(work / "vocab.txt")},
        "optimizer": {"warmup_steps": 1}, "global_batch_size": sizes.pairs, "group_size": sizes.pairs, "queue_size": sizes.queue_size, "randaugment": False,
        "alpha_ramp_steps": 0, "precision": "fp32", "epochs": 10**6, "max_steps": (rounds + 1) * steps, "num_workers": 1, "torch_threads": 1,
        "log_every_steps": LOG_EVERY_STEPS, "save_every_steps": steps, "evaluate_every_steps": steps,
    })  # fmt: skip
    turns = Turns(config, steps)
    run(config, work / "run", turns)
    return turns.engine, turns.bare

"""The figures of every step: losses, rates, gradients, how much of the device was used, how long data was waited for."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict

import torch

from pipeline.core.errors import StorageUnreachable
from training import checkpoint
from training.data_wait import DataWait, WaitFigures, metrics_of, slowest_rank, warning
from training.hooks.live import LiveView, live_view
from training.hooks.memory import memory_figures
from training.hooks.queue_age import oldest_key_steps
from training.hooks.wandb_log import WandbLog
from training.loop import StepDone
from training.metrics import Metrics
from training.throughput import Throughput, matrix_product_rate
from training.training_run import TrainingRun

log = logging.getLogger(__name__)


class Report:
    """Writes the record of rank 0; every rank takes part, since some figures are of all."""

    def __init__(self, run: TrainingRun) -> None:
        config = run.config
        self._run = run
        self.data_wait = DataWait(run.loader.stage_times, config.data_wait_window_steps)
        self._warned_at = -config.data_wait_window_steps
        rate = matrix_product_rate(run.world.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        self._throughput = Throughput(run.student.config, run.losses, config.pairs_per_group, config.queue_size, rate)
        self.gradient_norms: dict[str, float] = {}  # of the last step, by tower
        self._added: dict[str, float] = {}
        self.metrics = self._opened()
        self._views: list[WandbLog | LiveView] = _views(run) if run.world.rank == 0 else []

    def look_at_gradients(self) -> None:
        """Between the backward pass and the step, where they are there: the norm of each tower's, over all ranks."""
        squares = self._run.partition.squared_gradient_norms()
        totals = self._run.world.sum(torch.stack(list(squares.values())).to(self._run.world.device))
        self.gradient_norms = dict(zip(squares, totals.sqrt().tolist(), strict=True))

    def add(self, figures: dict[str, float]) -> None:
        """To the next step's record."""
        self._added |= figures

    def gradient_norm(self) -> float:
        """Of all parameters, over all ranks, before clipping."""
        return math.sqrt(sum(norm**2 for norm in self.gradient_norms.values()))

    def after_step(self, done: StepDone) -> None:
        self.data_wait.record(done.data_wait_s, done.step_s)
        ranks = self._data_wait_of_ranks() if done.step % self._run.config.log_every_steps == 0 else []
        if self.metrics is None:
            return
        added, self._added = self._added, {}
        values = added | done.losses | self._use_of_device(done) | self._progress(done) | self._of_data(done.step, ranks)
        if ranks:
            values |= memory_figures(self._run.world.device)
        self._record(done.step, values, [asdict(figures) for figures in ranks])

    def record(self, step: int, values: dict[str, float]) -> None:
        """Further figures of a step, e.g. val/itc; of rank 0's, other ranks' are left alone."""
        if self.metrics:
            self._record(step, values)

    def settle(self) -> None:
        """Raises OSError while the record of a step is not on disk; any thread of any rank may call."""
        if self.metrics:
            self.metrics.settle()

    def rewind(self) -> None:
        """The run went back: lines of later steps go, as those steps are taken again."""
        self.close()
        self.metrics = self._opened()
        self._views = _views(self._run) if self._run.world.rank == 0 else []

    def close(self) -> None:
        for view in [*self._views, *([self.metrics] if self.metrics else [])]:
            view.close()

    def _opened(self) -> Metrics | None:
        run = self._run
        return Metrics(run.folder / "train", run.state.step, run.total_steps, run.config.log_every_steps) if run.world.rank == 0 else None

    def _record(self, step: int, values: dict[str, float], ranks: Sequence[dict[str, float]] = ()) -> None:
        assert self.metrics
        self.metrics.record(step, values, ranks)
        for view in self._views:
            view.record(step, values)

    def _use_of_device(self, done: StepDone) -> dict[str, float]:
        run = self._run
        pairs_per_s = run.config.global_batch_size / done.step_s
        own = pairs_per_s / run.world.world_size
        return self._throughput.figures(done.micro_batches, run.alpha(done.step - 1), done.step - 1, own) | {"pairs_per_s": pairs_per_s}  # texts of rank 0

    def _progress(self, done: StepDone) -> dict[str, float]:
        run, last = self._run, done.step - 1
        return {
            "lr": run.learning_rate(last),
            "alpha": run.alpha(last),
            "grad_norm": self.gradient_norm(),
            "epoch": last / run.loader.steps_per_epoch,
            "pairs": float(done.step * run.config.global_batch_size),
            "data_wait_s": done.data_wait_s,
            "skipped_steps": float(run.state.skipped_steps),
            "queue_age_steps": float(oldest_key_steps(run.config.queue_size, run.config.global_batch_size, done.step - run.state.skipped_steps)),
            **{f"grad_norm/{tower}": norm for tower, norm in self.gradient_norms.items()},
        }

    def _of_data(self, step: int, ranks: list[WaitFigures]) -> dict[str, float]:
        loader, values = self._run.loader, dict[str, float]()
        if ranks:
            slowest = slowest_rank(ranks)
            values |= metrics_of(ranks[slowest], slowest)
            self._warn_of_slow_data(step, ranks[slowest], slowest)
            values |= {f"data/{name}": float(count) for name, count in loader.dataset.parts[0].dataset.reader.counters.items()}  # of rank 0
        if len(loader.dataset.parts) > 1:
            for name, counters in loader.sources(self._run.state.position, []).items():
                values |= {f"data/{name}/{counter}": counters[counter] for counter in ("drawn", "epochs")}
        return values

    def _data_wait_of_ranks(self) -> list[WaitFigures]:
        """Every rank must call."""
        own = torch.tensor([list(asdict(self.data_wait.figures()).values())], dtype=torch.float64)
        return [WaitFigures(*row) for row in self._run.world.gather(own.to(self._run.world.device)).tolist()]

    def _warn_of_slow_data(self, step: int, figures: WaitFigures, rank: int) -> None:
        """Once a window at most."""
        window = self._run.config.data_wait_window_steps
        if figures.steps < window or step - self._warned_at < window:
            return
        if sentence := warning(figures, rank, self._run.config.data_wait_warn_share):
            self._warned_at = step
            log.warning("step %d: %s", step, sentence)


def _views(run: TrainingRun) -> list[WandbLog | LiveView]:
    views: list[WandbLog | LiveView] = []
    if wandb := run.config.wandb:
        settings = run.config.model_dump(mode="json")
        views.append(WandbLog(run.folder / "train" / "wandb", project=wandb.project, name=wandb.name, mode=wandb.mode, config=settings))
    if run.config.live and (view := live_view(run.total_steps, run.state.step, lambda: _last_checkpoint(run.checkpoints))):
        views.append(view)
    return views


def _last_checkpoint(folder: str) -> int | None:
    """Its step, for the eye: a store that does not answer ends no run for it."""
    try:
        return max(checkpoint.steps_in(folder), default=None)
    except StorageUnreachable:
        return None

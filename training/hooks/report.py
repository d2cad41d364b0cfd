"""The figures of every step: losses, rates, gradients, how much of the device was used, how long data was waited for."""

import logging
from dataclasses import asdict

import torch

from training.data_wait import DataWait, WaitFigures, metrics_of, slowest_rank, warning
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
        self._gradient_norms: dict[str, float] = {}
        self._added: dict[str, float] = {}
        first = run.world.rank == 0
        self.metrics = Metrics(run.folder / "train", run.state.step, run.total_steps, config.log_every_steps) if first else None

    def look_at_gradients(self) -> None:
        """Between the backward pass and the step, where they are there: the norm of each tower's, on the steps that are logged."""
        step = self._run.state.step + 1
        self._gradient_norms = {}
        if step % self._run.config.log_every_steps == 0 or step == 1:
            squares = self._run.partition.squared_gradient_norms()
            totals = self._run.world.sum(torch.stack(list(squares.values())))
            self._gradient_norms = dict(zip((f"grad_norm/{tower}" for tower in squares), totals.sqrt().tolist(), strict=True))

    def add(self, figures: dict[str, float]) -> None:
        """To the next step's record."""
        self._added |= figures

    def after_step(self, done: StepDone) -> None:
        self.data_wait.record(done.data_wait_s, done.step_s)
        ranks = self._data_wait_of_ranks() if done.step % self._run.config.log_every_steps == 0 else []
        if self.metrics is None:
            return
        added, self._added = self._added, {}
        values = added | done.losses | self._use_of_device(done) | self._progress(done) | self._gradient_norms | self._of_data(done.step, ranks)
        self.metrics.record(done.step, values, [asdict(figures) for figures in ranks])

    def close(self) -> None:
        if self.metrics:
            self.metrics.close()

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
            "grad_norm": float(run.engine.get_global_grad_norm() or 0.0),
            "epoch": last / run.loader.steps_per_epoch,
            "pairs": float(done.step * run.config.global_batch_size),
            "data_wait_s": done.data_wait_s,
            "skipped_steps": float(run.state.skipped_steps),
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

"""What is done about steps that went wrong: named, counted, and, where asked for, taken back without the data that did it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from pipeline.core import storage
from shards.loader import Position
from training import checkpoint
from training.loop import StepDone
from training.objective import StepOutput
from training.training_run import TrainingRun, go_on_from
from training.watch.non_finite import diagnose
from training.watch.roll_back import Event, GoBack, RollBackPolicy, Stop
from training.watch.skipped_steps import SkippedSteps
from training.watch.spikes import Spike, SpikeDetector

log = logging.getLogger(__name__)
WATCHED = ("loss/total",)  # for spikes, beside the gradient's norm


class Guard:
    """Looks at every step before it is told to anyone else; `decide` says what is to happen after it."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._policy = RollBackPolicy(run.config.roll_back, run.config.roll_back_limit)
        self._skipped = SkippedSteps(run.folder / "train", run.world.rank, keep=run.config.max_skipped_in_a_row)
        self._detector = SpikeDetector()
        self._in_a_row: list[Position] = []  # where the batches of the steps skipped last start

    def explain(self, done: StepDone, outputs: Sequence[StepOutput], gradient_norms: dict[str, float]) -> None:
        """Of a skipped step: which loss of which rank, which samples. Every rank must call."""
        run = self._run
        with run.teacher.whole():
            skipped = diagnose(
                run.world, done.step, done.micro_batches, outputs, run.student, run.teacher.model, run.queue, gradient_norms, self._autocast
            )  # fmt: skip
        self._skipped.add(skipped)

    def decide(self, done: StepDone, began_at: Position, gradient_norm: float, checkpoint_steps: Callable[[], Sequence[int]]) -> GoBack | Stop | None:
        """The same on every rank; None is to go on. `checkpoint_steps`: those that the run may go back to, asked for only if something went wrong."""
        spikes = self._look_for_spikes(done, gradient_norm)
        self._in_a_row = [] if done.applied else [*self._in_a_row, began_at]
        if len(self._in_a_row) >= self._run.config.max_skipped_in_a_row:
            event = Event("non_finite", done.step - len(self._in_a_row) + 1, tuple(self._in_a_row), self._skipped.report())
        elif spikes:
            event = Event("spike", done.step, (began_at,), f"step {done.step}: {spikes[0]}")
        else:
            return None
        decision = self._policy.decide(self._run.state.roll_back, event, checkpoint_steps())
        return decision if isinstance(decision, GoBack | Stop) else None

    def go_back(self, decision: GoBack) -> None:
        """Load the checkpoint it names; later ones go, since a restart would take the newest. Every rank must call."""
        run = self._run
        log.warning("%s", decision.line)
        if run.world.rank == 0:
            checkpoint.forget_after(run.checkpoints, decision.to_step)
        run.world.barrier()
        go_on_from(run, checkpoint.read(storage.join(run.checkpoints, checkpoint.name_of(decision.to_step))))
        run.state = replace(run.state, roll_back=decision.state, skipped_in_a_row=0)
        self._in_a_row = []

    def _look_for_spikes(self, done: StepDone, gradient_norm: float) -> list[Spike]:
        if not done.applied:
            return []
        run = self._run
        values = {name: done.losses[name] for name in WATCHED} | {"grad_norm": gradient_norm}
        curves, spikes = self._detector.look(run.state.curves, values)
        run.state = replace(run.state, curves=curves)
        for spike in spikes:
            log.warning("step %d: %s", done.step, spike)
        return spikes

    def _autocast(self) -> AbstractContextManager[object]:
        config = self._run.config
        return torch.autocast(self._run.world.device.type, torch.bfloat16, enabled=config.precision == "bf16" and not config.bf16_params)

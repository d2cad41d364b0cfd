"""What is done about steps that went wrong: named, counted, and, where asked for, taken back without the data that did it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

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
        skipped_at, mode = self._run.state.skipped_at, self._policy.mode
        if len(skipped_at) >= self._run.config.max_skipped_in_a_row:
            event = Event("non_finite", done.step - len(skipped_at) + 1, skipped_at, self._skipped.report())
        elif spikes:
            event = Event("spike", done.step, (began_at,), f"step {done.step}: {spikes[0]}")
        else:
            return None
        may_go_back = mode == "spikes" or (mode == "non_finite" and event.reason == "non_finite")
        decision = self._policy.decide(self._run.state.roll_back, event, checkpoint_steps() if may_go_back else [])
        return decision if isinstance(decision, GoBack | Stop) else None

    def go_back(self, decision: GoBack) -> None:
        """Load the checkpoint it names; later ones go, since a restart would take the newest. Every rank must call."""
        run = self._run
        log.warning("%s", decision.line)
        run.world.together(lambda: checkpoint.forget_after(run.checkpoints, decision.to_step) if run.world.rank == 0 else None)
        whole = checkpoint.newest(run.checkpoints, run.world, run.config.save_patience_s)  # that one, or, where it is damaged, one before
        assert whole is not None
        go_on_from(run, whole)
        run.state = replace(run.state, roll_back=decision.state, skipped_at=())

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

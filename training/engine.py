"""The training loop: one global batch after another through DeepSpeed, with hooks for everything that only looks on."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from pipeline.core import stopping
from shards.loader import Position
from shards.quarantine import num_samples
from training import distributed
from training.batch import Batch
from training.config import TrainingConfig
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.hooks.agreement import Agreement
from training.hooks.guard import Guard
from training.hooks.profiler import Profiler
from training.hooks.report import Report
from training.hooks.upkeep import Upkeep
from training.hooks.validation import validation_of
from training.loop import Hook, StepDone
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.objective import StepOutput
from training.training_run import TrainingRun, put_together
from training.watch.hang import HangWatch
from training.watch.heartbeat import Heartbeat
from training.watch.roll_back import GoBack

Evaluate = Callable[[str], dict[str, float]]  # a checkpoint's folder, which may be an s3:// URL
Batches = Iterator[tuple[list[Batch], Position]]


def run(config: TrainingConfig, run_folder: Path, evaluate: Evaluate | None = None) -> dict[str, Any]:
    """Train from scratch or from the newest checkpoint in `run_folder`/train to the last step.

    Args:
        evaluate: scores a checkpoint folder every `evaluate_every_steps`; names -> values.

    Returns:
        Counters, the last losses and the last checkpoint's path.

    Raises:
        BelowFloor: more of the dataset is in quarantine than the budget allows; a checkpoint was written.
        Stopped: a signal, a STOP file or too many skipped steps in a row; a checkpoint was written.
        UserError: the configuration does not fit the data, the ranks or the checkpoint.
    """
    world = distributed.start(config.torch_threads)
    trainer = Trainer(put_together(config, run_folder, world), evaluate)
    try:
        return trainer.train()
    finally:
        trainer.close()


class Trainer:
    """The loop of one rank and its hooks."""

    def __init__(self, run: TrainingRun, evaluate: Evaluate | None = None) -> None:
        self.run = run
        config, train_folder, rank = run.config, run.folder / "train", run.world.rank
        with ExitStack() as opened:  # whatever ends the making of one part closes those before it
            opened.callback(run.close)
            self.heartbeat = opened.enter_context(closing(Heartbeat(train_folder / "heartbeat", rank)))
            watch = HangWatch(self.heartbeat, train_folder, rank, run.world.world_size, config.hang_report_s, config.hang_exit_s)
            opened.callback(watch.close)
            self.report = opened.enter_context(closing(run.world.together(lambda: Report(run))))
            self.guard = Guard(run)
            self.upkeep = opened.enter_context(closing(Upkeep(run, self.report, self.heartbeat, evaluate)))
            further = [*_asked_for(run, self.report, self.heartbeat), Agreement(run, config.compare_ranks_every_steps)]
            self.hooks: list[Hook] = [self.report, *(opened.enter_context(closing(hook)) for hook in further)]
            self._opened = opened.pop_all()

    def train(self) -> dict[str, Any]:
        """Every remaining step, with hooks after each; the loop of the whole package."""
        run, losses = self.run, dict[str, float]()
        run.world.together(lambda: stopping.raise_if_stopping(run.folder))
        self.upkeep.check_quarantine()
        batches = run.loader.from_position(run.state.position)
        while run.state.step < run.total_steps:
            began = time.perf_counter()
            micro_batches, position, data_wait_s = run.world.together(partial(self._wait_for_data, batches))
            began_at = run.state.position
            outputs, applied = self.optimizer_step(micro_batches)
            if applied:  # a skipped step must not age the teacher or reach the queue
                run.partition.clamp_("temperature", MIN_TEMPERATURE, MAX_TEMPERATURE)  # the original's clamp in the forward pass would miss the masters
                with record_function("albef/teacher"):
                    run.teacher.update()
                push_features(run.queue, run.world, outputs)
            losses = mean_losses(run.world, outputs)
            run.state = run.state.after(began_at, position, applied)
            done = StepDone(run.state.step, applied, losses, micro_batches, data_wait_s, time.perf_counter() - began)
            if not applied:
                self.guard.explain(done, outputs, self.report.gradient_norms)
            for hook in self.hooks:
                hook.after_step(done)
            decision = self.guard.decide(done, began_at, self.report.gradient_norm(), self.upkeep.checkpoint_steps)
            if isinstance(decision, GoBack):
                batches = self._go_back(decision)
            else:
                self.upkeep.after_step(done, stop_for=decision.line if decision else None)
        return {"steps": run.state.step, "skipped_steps": run.state.skipped_steps, "pairs": run.state.step * run.config.global_batch_size,
                "losses": losses, "checkpoint": self.upkeep.last_checkpoint(), "quarantined": num_samples(run.loader.quarantine)}  # fmt: skip

    def optimizer_step(self, micro_batches: Sequence[Batch]) -> tuple[list[StepOutput], bool]:
        """Forward and backward passes of a global batch's share and AdamW's step; False where it was skipped for a non-finite loss or gradient."""
        run, step = self.run, self.run.state.step
        torch.manual_seed(_dropout_seed(run.config.seed, step, run.world.rank))
        for group in run.engine.optimizer.param_groups:
            group["lr"] = run.learning_rate(step) * group.get("lr_scale", 1.0)
        outputs = []
        for number, batch in enumerate(micro_batches):
            with record_function("albef/forward"):
                output = run.engine(batch.to(run.world.device), run.teacher.model, run.queue, alpha=run.alpha(step), step=step)
            with record_function("albef/backward"):
                run.engine.backward(output.total)
            if number == len(micro_batches) - 1:
                self.report.look_at_gradients()
            with record_function("albef/optimizer"):
                run.engine.step()
            outputs.append(output)
        applied = bool(run.engine.was_step_applied())
        if not applied:
            run.partition.after_skipped_step()
        return outputs, applied

    def close(self) -> None:
        """Everything, also where one part fails to."""
        self._opened.close()

    def _wait_for_data(self, batches: Batches) -> tuple[list[Batch], Position, float]:
        """The next global batch's share, the place behind it, and the seconds that this rank waited."""
        step, began = self.run.state.step, time.perf_counter()
        self.heartbeat.beat("data", step)
        self.report.data_wait.begin()
        with record_function("albef/data"):
            micro_batches, position = self._next(batches)
        self.heartbeat.beat("step", step)  # from here on it may be the others that this rank waits for
        return micro_batches, position, time.perf_counter() - began

    def _next(self, batches: Batches) -> tuple[list[Batch], Position]:
        """The next share that is not left out."""
        run = self.run
        while True:
            micro_batches, position = next(batches)
            if not run.state.roll_back.leaves_out(run.state.position):
                return micro_batches, position
            run.state = replace(run.state, position=position)

    def _go_back(self, decision: GoBack) -> Batches:
        """To a checkpoint, which is written again with what is left out from now on."""
        self.guard.go_back(decision)
        self.report.rewind()
        self.upkeep.save_now()
        return self.run.loader.from_position(self.run.state.position)


def _asked_for(run: TrainingRun, report: Report, heartbeat: Heartbeat) -> list[Hook]:
    """The hooks that have a setting of their own."""
    config, hooks = run.config, list[Hook]()
    if config.profile and run.world.rank == 0:
        options = config.profile.model_dump()
        hooks.append(Profiler(run.folder / "train" / "profile", run.world.rank, run.world.device, **options, steps_taken=run.state.step))
    if config.validation:
        hooks.append(validation_of(run, config.validation, report.record, lambda: heartbeat.busy("evaluate", run.state.step)))
    return hooks


def mean_losses(world: World, outputs: Sequence[StepOutput]) -> dict[str, float]:
    """Losses (as loss/<name>) and the losses' own metrics, averaged over micro-batches and ranks."""
    named = [{**{f"loss/{name}": loss for name, loss in output.losses.items()}, "loss/total": output.total, **output.metrics} for output in outputs]
    names = list(named[0])
    values = torch.stack([torch.stack([values[name].detach().float() for name in names]) for values in named]).mean(dim=0)
    return dict(zip(names, world.mean(values).tolist(), strict=True))


def push_features(queue: FeatureQueue, world: World, outputs: Sequence[StepOutput]) -> None:
    """What the micro-batches of a step leave for the queue, of all ranks in the order of the global batch; nothing is sent where nobody would read it."""
    pairs = [(output.teacher_image_feat, output.teacher_text_feat) for output in outputs]
    features = [torch.stack([image, text], dim=1) for image, text in pairs if image is not None and text is not None]
    if not features or queue.size == 0:
        return
    ids = [output.image_ids for output in outputs if output.image_ids is not None]
    image, text = _in_global_order(features, world).unbind(dim=1)
    queue.push(image, text, _in_global_order(ids, world) if ids else None)


def _in_global_order(micro_batches: Sequence[Tensor], world: World) -> Tensor:
    """Rows of all ranks in one gather: micro-batch a of rank r is slice a * world_size + r of the global batch."""
    gathered = world.gather(torch.stack(list(micro_batches)))
    return gathered.view(world.world_size, len(micro_batches), *gathered.shape[1:]).transpose(0, 1).flatten(0, 2)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"dropout {seed} {step} {rank}".encode()).digest()[:8]) >> 1

"""The training loop: one global batch after another through DeepSpeed, with hooks for everything that only looks on."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core import stopping
from shards.quarantine import num_samples
from training import distributed
from training.batch import Batch
from training.config import TrainingConfig
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.hooks.report import Report
from training.hooks.upkeep import Upkeep
from training.loop import Hook, StepDone
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.objective import StepOutput
from training.training_run import TrainingRun, put_together

Evaluate = Callable[[Path], dict[str, float]]


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
        self.report = Report(run)
        self.upkeep = Upkeep(run, self.report, evaluate)
        self.hooks: list[Hook] = [self.report, self.upkeep]  # upkeep is the last: it may end the run

    def train(self) -> dict[str, Any]:
        """Every remaining step, with hooks after each; the loop of the whole package."""
        run = self.run
        stopping.raise_if_stopping(run.folder)
        self.upkeep.check_quarantine()
        losses: dict[str, float] = {}
        if run.state.step < run.total_steps:
            self.report.data_wait.begin()
            began = time.perf_counter()
            for micro_batches, position in run.loader.from_position(run.state.position):
                data_wait_s = time.perf_counter() - began
                outputs, applied = self.optimizer_step(micro_batches)
                if applied:  # a skipped step must not age the teacher or reach the queue
                    run.partition.clamp_("temperature", MIN_TEMPERATURE, MAX_TEMPERATURE)  # the original's clamp in the forward pass would miss the masters
                    run.teacher.update()
                    push_features(run.queue, run.world, outputs)
                losses = mean_losses(run.world, outputs)
                skipped = replace(run.state, skipped_steps=run.state.skipped_steps + 1, skipped_in_a_row=run.state.skipped_in_a_row + 1)
                state = replace(run.state, skipped_in_a_row=0) if applied else skipped
                run.state = replace(state, position=position, step=state.step + 1)
                done = StepDone(run.state.step, applied, losses, micro_batches, data_wait_s, time.perf_counter() - began)
                for hook in self.hooks:
                    hook.after_step(done)
                if run.state.step >= run.total_steps:
                    break
                self.report.data_wait.begin()
                began = time.perf_counter()
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
            output = run.engine(batch.to(run.world.device), run.teacher.model, run.queue, alpha=run.alpha(step), step=step)
            run.engine.backward(output.total)
            if number == len(micro_batches) - 1:
                self.report.look_at_gradients()
            run.engine.step()
            outputs.append(output)
        return outputs, bool(run.engine.was_step_applied())

    def close(self) -> None:
        self.run.close()
        for hook in self.hooks:
            hook.close()


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

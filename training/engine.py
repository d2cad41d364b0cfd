"""The training loop: one global batch after another through DeepSpeed, with what is needed to stop and go on exactly."""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.core import stopping, storage
from pipeline.core.errors import Stopped
from shards.dataset import Dataset
from shards.loader import Position, ShardLoader
from shards.order.mixing import MixedDataset
from shards.quarantine import Entry, num_samples
from training import checkpoint, distributed, schedule
from training.batch import Batch
from training.compilation import compile_blocks, require_compiler
from training.config import TrainingConfig
from training.data import build_loader, build_tokenizer, open_dataset
from training.data_wait import DataWait, WaitFigures, metrics_of, slowest_rank, warning
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.flat_groups import MOMENTS, FlatGroup, adam_state, flat_groups
from training.global_group import GlobalGroup
from training.initialise import build_student, load_teacher_and_queue, open_first_weights
from training.losses import losses_of
from training.metrics import Metrics
from training.model import Albef
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.objective import Pretrainer, StepOutput
from training.optim import parameter_groups
from training.quarantine_budget import QuarantineBudget, write_quarantine
from training.resuming import to_go_on_from
from training.split import split_of
from training.teacher import Teacher
from training.throughput import Throughput, matrix_product_rate
from training.tokenizer import Tokenizer
from training.weights.sources import Source

log = logging.getLogger(__name__)
Evaluate = Callable[[Path], dict[str, float]]


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands after an optimizer step; small, printable, stored in the checkpoint."""

    position: Position
    step: int = 0  # optimizer steps, skipped ones included
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


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
    trainer = Trainer(config, run_folder, world, evaluate)
    try:
        return trainer.train()
    finally:
        trainer.close()


class Trainer:
    """Student, teacher, queue, data and DeepSpeed's engine of one run on one rank."""

    def __init__(self, config: TrainingConfig, run_folder: Path, world: World, evaluate: Evaluate | None) -> None:
        self.config, self.run_folder, self.world = config, run_folder, world
        self.checkpoints = str(run_folder / "train" / "checkpoints")
        self._evaluate = evaluate
        losses = world.together(lambda: losses_of(config.losses))  # what costs nothing is checked first
        micro_batch_size, self.accumulation_steps = world.together(lambda: split_of(config, world.world_size))
        if config.compile:
            world.together(lambda: require_compiler(world.device))
        resumed = world.together(lambda: to_go_on_from(self.checkpoints, config))
        source = world.together(lambda: None if resumed else open_first_weights(config))  # a run that goes on has every weight of its own
        dataset = open_dataset(config, resumed, world)
        self.tokenizer = world.from_first(world.together(lambda: _tokenizer(config, dataset, resumed, source) if world.rank == 0 else None))
        self.loader: ShardLoader[Batch] = world.together(
            lambda: build_loader(config, dataset, self.tokenizer, world, micro_batch_size, self.accumulation_steps)
        )
        self.total_steps = min(config.max_steps or sys.maxsize, config.epochs * self.loader.steps_per_epoch)
        for sentence in schedule.misfits(config, self.loader.steps_per_epoch, self.total_steps):
            log.warning("%s", sentence)
        self.student = world.together(lambda: Albef(resumed.model_config) if resumed else build_student(config, self.tokenizer, source))
        if config.compile:
            num_blocks = compile_blocks(self.student)
            log.info("compiling %d blocks of student and teacher each at its first use: the first steps take minutes", num_blocks)
        over_ranks = GlobalGroup(world, config.max_tokens) if config.negatives == "global" and world.world_size > 1 else None  # alone, it is one plain group
        self.engine = _deepspeed_engine(config, Pretrainer(self.student, losses, config.pairs_per_group, over_ranks), world, micro_batch_size)
        self.groups = flat_groups(self.engine.optimizer, self.student)
        self.teacher = Teacher(self.student, self.groups, config.momentum)
        if config.compile:
            compile_blocks(self.teacher.model)  # a copy of the student, which leaves compiled code behind
        self.queue = FeatureQueue(config.queue_size, self.student.config.embed_dim, world.device, seed=config.seed)
        self.state = TrainingState(position=self.loader.start())
        if resumed:
            self._load(resumed)
        elif source:
            load_teacher_and_queue(source, self.student.config, self.teacher, self.queue)
        self._data_warned_at = -config.data_wait_window_steps
        self.data_wait = DataWait(self.loader.stage_times, config.data_wait_window_steps)
        self.quarantine_budget = QuarantineBudget(config.quarantine_budget, dataset.num_samples, dataset.name_of)
        rate = matrix_product_rate(world.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        self.throughput = Throughput(self.student.config, self.engine.module.losses, config.pairs_per_group, config.queue_size, rate)
        self.metrics = Metrics(run_folder / "train", self.state.step, self.total_steps, config.log_every_steps) if world.rank == 0 else None
        log.info(
            "stage train: DeepSpeed ZeRO-%d %s, %d rank(s) x %d pairs x %d accumulation, %d items, step %d of %d, %.1fM parameters",
            config.zero_stage, config.precision, world.world_size, micro_batch_size, self.accumulation_steps,
            self.loader.items_per_epoch, self.state.step, self.total_steps, sum(p.numel() for p in self.student.parameters()) / 1e6,
        )  # fmt: skip

    def train(self) -> dict[str, Any]:
        """Every remaining step, with hooks after each; the loop of the whole package."""
        stopping.raise_if_stopping(self.run_folder)
        self.quarantine_budget.check(self.loader.quarantine)
        losses: dict[str, float] = {}
        self.data_wait.begin()
        waiting_since = time.perf_counter()
        if self.state.step < self.total_steps:
            for micro_batches, position in self.loader.from_position(self.state.position):
                data_wait_s = time.perf_counter() - waiting_since
                outputs, applied = self._optimizer_step(micro_batches)
                if applied:  # a skipped step must not age the teacher or reach the queue
                    self._clamp_temperature()
                    self.teacher.update()
                    push_features(self.queue, self.world, outputs)
                losses = self._mean_losses(outputs)
                self._advance(position, applied, micro_batches, losses)
                self._report(micro_batches, losses, data_wait_s, time.perf_counter() - waiting_since)
                self._after_step()
                self.data_wait.begin()
                waiting_since = time.perf_counter()
                if self.state.step >= self.total_steps:
                    break
        saved = checkpoint.read(self.checkpoints).path
        log.info("stage train: %d of %d steps taken; checkpoint %s", self.state.step, self.total_steps, saved)
        return {"steps": self.state.step, "skipped_steps": self.state.skipped_steps, "pairs": self.state.step * self.config.global_batch_size,
                "losses": losses, "checkpoint": saved, "quarantined": num_samples(self.loader.quarantine)}  # fmt: skip

    def close(self) -> None:
        """End the loader's workers and what is announced of remote shards; pieces on their way are waited for."""
        self.loader.close()
        self.loader.dataset.parts[0].dataset.reader.close()  # all parts share it
        if self.metrics:
            self.metrics.close()

    def _optimizer_step(self, micro_batches: Sequence[Batch]) -> tuple[list[StepOutput], bool]:
        torch.manual_seed(_dropout_seed(self.config.seed, self.state.step, self.world.rank))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self._learning_rate(self.state.step) * group.get("lr_scale", 1.0)
        outputs = []
        for batch in micro_batches:
            output = self.engine(batch.to(self.world.device), self.teacher.model, self.queue, alpha=self._alpha(self.state.step), step=self.state.step)
            self.engine.backward(output.total)
            self.engine.step()
            outputs.append(output)
        return outputs, bool(self.engine.was_step_applied())

    def _clamp_temperature(self) -> None:
        """On ZeRO's fp32 master: the original clamps in its forward pass, which would not stick here."""
        for group in self.groups:
            group.clamp_("temperature", MIN_TEMPERATURE, MAX_TEMPERATURE)

    def _mean_losses(self, outputs: Sequence[StepOutput]) -> dict[str, float]:
        """Losses (as loss/<name>) and the losses' own metrics, averaged over micro-batches and ranks."""
        named = [{**{f"loss/{name}": loss for name, loss in output.losses.items()}, "loss/total": output.total, **output.metrics} for output in outputs]
        names = list(named[0])
        values = torch.stack([torch.stack([values[name].detach().float() for name in names]) for values in named]).mean(dim=0)
        return dict(zip(names, self.world.mean(values).tolist(), strict=True))

    def _advance(self, position: Position, applied: bool, micro_batches: Sequence[Batch], losses: dict[str, float]) -> None:
        state = self.state
        if applied:
            self.state = replace(state, position=position, step=state.step + 1, skipped_in_a_row=0)
            return
        self.state = replace(state, position=position, step=state.step + 1, skipped_steps=state.skipped_steps + 1, skipped_in_a_row=state.skipped_in_a_row + 1)
        keys = [key for batch in micro_batches for key in batch.sample_keys]
        log.warning("step %d skipped: non-finite loss or gradient (losses %s); samples on this rank: %s", self.state.step, losses, " ".join(keys[:64]))

    def _report(self, micro_batches: Sequence[Batch], losses: dict[str, float], data_wait_s: float, step_s: float) -> None:
        self.data_wait.record(data_wait_s, step_s)
        ranks = self._data_wait_of_ranks() if self.state.step % self.config.log_every_steps == 0 else []
        if self.metrics is None:
            return
        last = self.state.step - 1
        pairs_per_s = self.config.global_batch_size / step_s
        used = self.throughput.figures(micro_batches, self._alpha(last), last, pairs_per_s / self.world.world_size)  # texts of rank 0 stand for all
        values = (
            losses
            | used
            | {
                "lr": self._learning_rate(last),
                "alpha": self._alpha(last),
                "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
                "epoch": last / self.loader.steps_per_epoch,
                "pairs": self.state.step * self.config.global_batch_size,
                "pairs_per_s": pairs_per_s,
                "data_wait_s": data_wait_s,
                "skipped_steps": float(self.state.skipped_steps),
            }
        )
        if ranks:
            slowest = slowest_rank(ranks)
            values |= metrics_of(ranks[slowest], slowest)
            self._warn_of_slow_data(ranks[slowest], slowest)
            values |= {f"data/{name}": float(count) for name, count in self.loader.dataset.parts[0].dataset.reader.counters.items()}  # of rank 0
        if len(self.loader.dataset.parts) > 1:
            for name, counters in self.loader.sources(self.state.position, []).items():
                values |= {f"data/{name}/{counter}": counters[counter] for counter in ("drawn", "epochs")}
        self.metrics.record(self.state.step, values, [asdict(figures) for figures in ranks])

    def _data_wait_of_ranks(self) -> list[WaitFigures]:
        """Every rank must call."""
        own = torch.tensor([list(asdict(self.data_wait.figures()).values())], dtype=torch.float64)
        return [WaitFigures(*row) for row in self.world.gather(own.to(self.world.device)).tolist()]

    def _warn_of_slow_data(self, figures: WaitFigures, rank: int) -> None:
        """Once a window at most."""
        if figures.steps < self.config.data_wait_window_steps or self.state.step - self._data_warned_at < self.config.data_wait_window_steps:
            return
        if sentence := warning(figures, rank, self.config.data_wait_warn_share):
            self._data_warned_at = self.state.step
            log.warning("step %d: %s", self.state.step, sentence)

    def _after_step(self) -> None:
        """Save, evaluate, stop: in this order, so that whatever ends the run leaves a checkpoint."""
        step, config = self.state.step, self.config
        reason, within_budget = self._asked_of_all()
        scored = self._evaluate is not None and config.evaluate_every_steps is not None and step % config.evaluate_every_steps == 0
        if reason or scored or not within_budget or step % config.save_every_steps == 0 or step >= self.total_steps:
            path = self._save()
            if scored and self.metrics and self._evaluate:
                self.metrics.record(step, {f"val/{name}": value for name, value in self._evaluate(Path(path)).items()})
            self.world.barrier()
        self.quarantine_budget.check([] if within_budget else self.loader.quarantine)
        if reason and step < self.total_steps:
            raise Stopped(f"training stopped at step {step} of {self.total_steps}: {reason}; {stopping.how_to_continue(reason)}")

    def _asked_of_all(self) -> tuple[str | None, bool]:
        """Why to stop, and whether the quarantine is within its budget: the same answers on every rank, so that all stop at the same step."""
        own = stopping.stop_reason(self.run_folder)
        if self.state.skipped_in_a_row >= self.config.max_skipped_in_a_row:
            own = f"{self.state.skipped_in_a_row} steps in a row were skipped for a non-finite loss or gradient"
        shared, unshared = self.loader.quarantine_counts
        asked = torch.tensor([float(own is not None), float(unshared)], device=self.world.device)
        anyone, unshared_by_all = (self.world.mean(asked) * self.world.world_size).tolist()
        within_budget = self.quarantine_budget.allows(shared + round(unshared_by_all))  # of what several ranks met too much is counted: then count exactly
        within_budget = within_budget or self.quarantine_budget.allows(num_samples(self.loader.share_quarantine(self.world.of_all)))
        return (own or "another rank was asked to stop") if anyone else None, within_budget

    def _save(self) -> str:
        masters = _named_everywhere(self.groups, [group.master for group in self.groups])
        moments = {name: _named_everywhere(self.groups, [adam_state(self.engine.optimizer, group)[name] for group in self.groups]) for name in MOMENTS}
        quarantine = self.loader.share_quarantine(self.world.of_all)
        sources = _summed(self.world.of_all(self.loader.sources(self.state.position, quarantine)))
        if self.world.rank == 0:
            tensors = {
                "student": masters,
                "teacher": self.teacher.state_dict(),
                "optimizer": {f"{moment}.{name}": tensor for moment, named in moments.items() for name, tensor in named.items()},
                "queue": {name: ring for name, ring in self.queue.state_dict().items() if name != "position"},
            }
            checkpoint.write(self.checkpoints, self.state.step, tensors, self.tokenizer, self._record(quarantine, sources))
            write_quarantine(self.run_folder / "train", quarantine, self.quarantine_budget)
            checkpoint.remove_old(self.checkpoints, self.config.keep_last)
        self.world.barrier()
        return storage.join(self.checkpoints, checkpoint.name_of(self.state.step))

    def _record(self, quarantine: list[Entry], sources: dict[str, dict[str, float]]) -> dict[str, Any]:
        state = {**asdict(self.state), "adam_step": float(adam_state(self.engine.optimizer, self.groups[0])["step"]), "queue_position": self.queue.position,
                 "manifest": self.loader.dataset.pinned, "quarantine": quarantine, "sources": sources}  # fmt: skip
        return {"state": state, "model": self.student.config.model_dump(mode="json"), "training": self.config.model_dump(mode="json")}

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint of any world size: each rank takes its slices."""
        weights, moments, state = saved.tensors("student"), saved.tensors("optimizer"), saved.state
        with torch.no_grad():
            for group in self.groups:
                flat = group.flatten(weights)
                group.compute.copy_(flat)
                group.master.copy_(group.own(flat))
                adam = adam_state(self.engine.optimizer, group)
                adam["step"].fill_(state["adam_step"])
                for moment in MOMENTS:
                    adam[moment].copy_(group.own(group.flatten({place.name: moments[f"{moment}.{place.name}"] for place in group.placements})))
        self.teacher.load_state_dict(saved.tensors("teacher"))
        self.queue.load_state_dict({**saved.tensors("queue"), "position": state["queue_position"]})
        self.loader.restore_quarantine(state["quarantine"])
        if self.world.rank == 0:
            self.loader.restore_bytes_read(state["sources"])
        self.state = TrainingState(Position(**state["position"]), state["step"], state["skipped_steps"], state["skipped_in_a_row"])
        log.info("resumed from %s", saved.path)

    def _learning_rate(self, step: int) -> float:
        return schedule.learning_rate(self.config, step, self.loader.steps_per_epoch, self.total_steps)

    def _alpha(self, step: int) -> float:
        return schedule.alpha(self.config, step, self.loader.steps_per_epoch)


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


def _tokenizer(config: TrainingConfig, dataset: Dataset | MixedDataset, resumed: checkpoint.Checkpoint | None, source: Source | None) -> Tokenizer:
    return resumed.tokenizer() if resumed else build_tokenizer(config, dataset, source.tokenizer if source else None)


def _summed(ranks: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each dataset: what every rank knows of the order, and the bytes that all of them read."""
    return {name: {**counters, "bytes": sum(rank[name]["bytes"] for rank in ranks)} for name, counters in ranks[0].items()}


def _named_everywhere(groups: Sequence[FlatGroup], shards: Sequence[Tensor]) -> dict[str, Tensor]:
    """All ranks' slices as named tensors; every rank must call."""
    return {name: view for group, shard in zip(groups, shards, strict=True) for name, view in group.named(group.gather(shard.detach())).items()}


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int.from_bytes(hashlib.sha256(f"dropout {seed} {step} {rank}".encode()).digest()[:8]) >> 1


def _deepspeed_engine(config: TrainingConfig, pretrainer: Pretrainer, world: World, micro_batch_size: int) -> Any:
    import deepspeed

    deepspeed.utils.logging.set_log_level_from_string("warning")
    recipe = config.optimizer
    groups = parameter_groups(pretrainer.student, recipe.weight_decay, recipe.temperature_lr_scale)
    adamw = torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, eps=recipe.epsilon, fused=world.device.type == "cuda")
    settings = {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": config.global_batch_size // (micro_batch_size * world.world_size),
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 1_000_000_000,
    }
    engine, *_ = deepspeed.initialize(model=pretrainer.to(world.device), optimizer=adamw, config=settings, dist_init_required=False)
    return engine

"""A run put together on one rank: data, student, teacher, queue and DeepSpeed's engine, from the first weights or from the newest checkpoint."""

import copy
import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shards.dataset import Dataset
from shards.loader import Position, ShardLoader
from shards.order.mixing import MixedDataset
from training import schedule, snapshot
from training.activation_checkpointing import checkpoint_blocks
from training.batch import Batch
from training.checkpoint import Checkpoint, place_of
from training.compilation import compile_blocks, require_compiler
from training.config import TrainingConfig
from training.data import build_loader, build_tokenizer, open_dataset
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.global_group import GlobalGroup
from training.initialise import build_student, load_teacher_and_queue, open_first_weights
from training.losses import Loss, losses_of
from training.memory import memory_of_rank
from training.model import Albef
from training.objective import Pretrainer
from training.resuming import to_go_on_from
from training.split import split_of
from training.teacher import Teacher
from training.tokenizer import Tokenizer
from training.watch import spikes
from training.watch.roll_back import RollBackState
from training.watch.spikes import Curve
from training.weights.sources import Source
from training.zero.engine import deepspeed_engine, stage_in_effect
from training.zero.partition import Partition, partition_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands after an optimizer step; small, printable, stored in the checkpoint."""

    position: Position
    step: int = 0  # optimizer steps, skipped ones included
    skipped_steps: int = 0
    skipped_at: tuple[Position, ...] = ()  # where the batches of the steps skipped last, in a row, start
    roll_back: RollBackState = field(default_factory=RollBackState)
    curves: dict[str, Curve] = field(default_factory=dict)  # what spikes are told from

    def after(self, began_at: Position, position: Position, applied: bool) -> "TrainingState":
        """One optimizer step later, whose batch lies between these places in the data."""
        skipped = not applied
        return replace(
            self,
            position=position,
            step=self.step + 1,
            skipped_steps=self.skipped_steps + skipped,
            skipped_at=(*self.skipped_at, began_at) if skipped else (),
        )


@dataclass
class TrainingRun:
    """Everything that one rank trains with; `state` alone is replaced, after each step."""

    config: TrainingConfig
    folder: Path
    world: World
    tokenizer: Tokenizer
    loader: ShardLoader[Batch]
    total_steps: int
    student: Albef
    engine: Any  # DeepSpeed's, around `Pretrainer`
    partition: Partition
    teacher: Teacher
    queue: FeatureQueue
    state: TrainingState

    @property
    def checkpoints(self) -> str:
        return place_of(str(self.folder), self.config.checkpoint_folder)

    @property
    def num_parameters(self) -> int:
        return sum(place.shape.numel() for flat in self.partition.flats for place in flat.placements)

    @property
    def losses(self) -> dict[str, Loss]:
        losses: dict[str, Loss] = self.engine.module.losses
        return losses

    def learning_rate(self, step: int) -> float:
        return schedule.learning_rate(self.config, step, self.loader.steps_per_epoch, self.total_steps)

    def alpha(self, step: int) -> float:
        return schedule.alpha(self.config, step, self.loader.steps_per_epoch)

    def close(self) -> None:
        """End the loader's workers and what is announced of remote shards; pieces on their way are waited for."""
        self.loader.close()
        self.loader.dataset.parts[0].dataset.reader.close()  # all parts share it


def put_together(config: TrainingConfig, run_folder: Path, world: World) -> TrainingRun:
    """Every rank must call; what costs nothing is checked first, and each mistake is told by one rank.

    Raises:
        BelowFloor: more of the dataset is lost than the budget allows.
        UserError: the configuration does not fit the data, the ranks or the checkpoint.
    """
    losses = world.together(lambda: losses_of(config.losses))
    micro_batch_size, accumulation_steps = world.together(lambda: split_of(config, world.world_size))
    if config.compile:
        world.together(lambda: require_compiler(world.device))
    resumed = to_go_on_from(run_folder, config, world)
    source = world.together(lambda: None if resumed else open_first_weights(config))  # a run that goes on has every weight of its own
    dataset = open_dataset(config, resumed, world)
    tokenizer = world.from_first(world.together(lambda: _tokenizer(config, dataset, resumed, source) if world.rank == 0 else None))
    loader = world.together(lambda: build_loader(config, dataset, tokenizer, world, micro_batch_size, accumulation_steps))
    student = world.together(lambda: Albef(resumed.model_config) if resumed else build_student(config, tokenizer, source))
    run = _with_engine(config, run_folder, world, tokenizer, loader, student, losses, micro_batch_size)
    for sentence in schedule.misfits(config, loader.steps_per_epoch, run.total_steps):
        log.warning("%s", sentence)
    if resumed:
        go_on_from(run, resumed)
    elif source:
        load_teacher_and_queue(source, student.config, run.teacher, run.queue)
    log.info(
        "stage train: DeepSpeed ZeRO-%d %s, %d rank(s) x %d pairs x %d accumulation, %d items, step %d of %d, %.1fM parameters",
        stage_in_effect(config, world.world_size), config.precision, world.world_size, micro_batch_size, accumulation_steps,
        loader.items_per_epoch, run.state.step, run.total_steps, run.num_parameters / 1e6,
    )  # fmt: skip
    log.info("memory: %s", memory_of_rank(run.num_parameters, config, world.world_size))
    return run


def _with_engine(
    config: TrainingConfig,
    run_folder: Path,
    world: World,
    tokenizer: Tokenizer,
    loader: ShardLoader[Batch],
    student: Albef,
    losses: dict[str, Loss],
    micro_batch_size: int,
) -> TrainingRun:
    student.to(world.device)
    teacher_model = copy.deepcopy(student)  # before the engine cuts the student up, and before blocks are changed
    for model in (student, teacher_model) if config.compile else ():
        num_blocks = compile_blocks(model)
        log.info("compiling %d blocks, each at its first use: the first steps take minutes", num_blocks)
    if config.activation_checkpointing:
        checkpoint_blocks(student)
    over_ranks = GlobalGroup(world, config.max_tokens) if config.negatives == "global" and world.world_size > 1 else None  # alone, it is one plain group
    pretrainer = Pretrainer(student, losses, config.pairs_per_group, over_ranks)
    engine = deepspeed_engine(config, pretrainer, world, micro_batch_size)
    partition = partition_of(engine.optimizer, student, stage_in_effect(config, world.world_size), world.rank, world.world_size)
    compute_type = torch.bfloat16 if config.precision == "bf16" else torch.float32
    teacher = Teacher(teacher_model, partition, config.momentum, compute_type, shard_compute=config.zero_stage == 3)
    teacher.whole_during(pretrainer)
    queue = FeatureQueue(config.queue_size, student.config.embed_dim, world.device, seed=config.seed)
    total_steps = min(config.max_steps or sys.maxsize, config.epochs * loader.steps_per_epoch)
    state = TrainingState(position=loader.start())
    return TrainingRun(config, run_folder, world, tokenizer, loader, total_steps, student, engine, partition, teacher, queue, state)


def go_on_from(run: TrainingRun, saved: Checkpoint) -> None:
    """Take over all that a checkpoint holds, whatever world wrote it; every rank must call."""
    snapshot.restore(saved, run.partition, run.teacher, run.queue)
    state = saved.state
    run.loader.restore_quarantine(state["quarantine"])
    run.loader.restore_bytes_read(state["sources"] if run.world.rank == 0 else {})
    run.state = TrainingState(
        Position(**state["position"]),
        state["step"],
        state["skipped_steps"],
        _still_in_a_row(state, run.config),
        RollBackState.from_json(state["roll_back"]) if "roll_back" in state else RollBackState(),
        spikes.from_json(state.get("curves", {})),
    )
    log.info("resumed from %s", saved.path)


def _still_in_a_row(state: dict[str, Any], config: TrainingConfig) -> tuple[Position, ...]:
    """None where they were enough to end the run: who starts it once more wants it to go on."""
    skipped_at = tuple(Position(**position) for position in state.get("skipped_at", ()))
    return skipped_at if len(skipped_at) < config.max_skipped_in_a_row else ()


def _tokenizer(config: TrainingConfig, dataset: Dataset | MixedDataset, resumed: Checkpoint | None, source: Source | None) -> Tokenizer:
    return resumed.tokenizer() if resumed else build_tokenizer(config, dataset, source.tokenizer if source else None)

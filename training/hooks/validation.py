"""Losses on held-out pairs: ITC, ITM and MLM under conditions that never change, so that a run's values compare with each other and with another run's."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from training.config import ValidationConfig
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.hooks.held_out import HeldOut, open_held_out
from training.loop import StepDone
from training.losses import Loss
from training.losses.itc import ImageTextContrastive
from training.losses.itm import ImageTextMatching
from training.losses.mlm import MaskedLanguageModeling
from training.model import Albef
from training.objective import Pretrainer, StepOutput
from training.training_run import TrainingRun

log = logging.getLogger(__name__)

# Hard targets, since soft ones move with the teacher; uniform negatives, since hard ones get harder as ITC learns.
LOSSES: dict[str, Loss] = {
    "itc": ImageTextContrastive(soft_targets=False),
    "itm": ImageTextMatching(hard_from_step=None),
    "mlm": MaskedLanguageModeling(soft_targets=False),
}
Record = Callable[[int, dict[str, float]], None]


class Validation:
    """`val/itc`, `val/itm`, `val/mlm` and the losses' metrics (`val/itm/accuracy`, ...) every `every_steps` steps; of what the run trains.

    Like the training losses they are means over groups; without augmentation, dropout or soft targets, with negatives drawn uniformly, always the same
    ones. ITC's keys are the teacher's features of the group alone: against the queue, values would move with its age. With `with_teacher` also
    `val/teacher/...`, where the teacher takes the student's place. Every rank takes as many passes, each over one group, and values are averaged in the
    order of groups: they do not depend on the number of ranks. Neither queue, random state nor the modules' modes are changed.

    Args:
        engine: called in place of the Pretrainer that it wraps; that itself where nothing does.
        record: takes step and values, on every rank.
        precision: compute type of the teacher's passes; the student's is the engine's.
        busy: around a validation, which may take longer than a step that hangs.
    """

    def __init__(
        self,
        engine: nn.Module,
        pretrainer: Pretrainer,
        teacher: Albef,
        held_out: HeldOut,
        world: World,
        record: Record,
        *,
        every_steps: int,
        with_teacher: bool = False,
        precision: torch.dtype = torch.float32,
        busy: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.engine, self.pretrainer, self.teacher, self.held_out, self.world, self.record = engine, pretrainer, teacher, held_out, world, record
        self.every_steps, self.precision, self.busy = every_steps, precision, busy
        self._losses = {name: loss for name, loss in LOSSES.items() if name in pretrainer.losses}
        self.teacher_pass = Pretrainer(teacher, self._losses, held_out.group_size) if with_teacher else None
        self._queue = FeatureQueue(0, teacher.config.embed_dim, world.device)
        log.info("validation every %d steps on %d pairs in groups of %d", every_steps, held_out.num_pairs, held_out.group_size)

    def after_step(self, done: StepDone) -> None:
        if done.step % self.every_steps == 0:
            with self.busy():
                self.record(done.step, self.values())

    def close(self) -> None:
        """Holds nothing between two validations."""

    def values(self) -> dict[str, float]:
        """Names to means over all groups; every rank must call.

        Raises:
            DataError, Stopped: the held-out data cannot be read; FailedElsewhere: by another rank.
        """
        rows = list(self._rows())
        names = list(rows[0])
        own = torch.stack([torch.stack([row[name].detach().double() for name in names]) for row in rows])
        of_ranks = self.world.gather(own).view(self.world.world_size, len(rows), len(names))
        in_order = of_ranks.transpose(0, 1).flatten(0, 1)[: self.held_out.num_groups]  # without the groups that came again
        return dict(zip(names, in_order.mean(dim=0).tolist(), strict=True))

    def _rows(self) -> Iterator[dict[str, Tensor]]:
        """Of each group of this rank."""
        with torch.no_grad(), evaluating(self.pretrainer), evaluating(self.teacher), asked_for(self.pretrainer, self._losses, self.held_out.group_size):
            groups = self.held_out.groups(self.world.rank, self.world.world_size)
            while (batch := self.world.together(lambda: next(groups, None))) is not None:  # agreed before a pass, in which ZeRO-3's ranks need each other
                batch = batch.to(self.world.device)
                values = named("val", self.engine(batch, self.teacher, self._queue, alpha=0.0))
                if self.teacher_pass:
                    with torch.autocast(self.world.device.type, self.precision, enabled=self.precision != torch.float32):
                        values |= named("val/teacher", self.teacher_pass(batch, self.teacher, self._queue, alpha=0.0))
                yield values


def named(prefix: str, output: StepOutput) -> dict[str, Tensor]:
    """Losses and metrics, but for the temperature, which is no result."""
    values = {**output.losses, **output.metrics}
    return {f"{prefix}/{name}": value for name, value in values.items() if name != "temperature"}


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards each module in the mode it had."""
    modes = [(module, module.training) for module in root.modules()]
    root.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def asked_for(pretrainer: Pretrainer, losses: Mapping[str, Loss], group_size: int) -> Iterator[None]:
    """Other losses within own groups of another size, through the same module: an engine that partitions parameters knows no other."""
    kept = pretrainer.losses, pretrainer.group_size, pretrainer.global_group
    pretrainer.losses, pretrainer.group_size, pretrainer.global_group = dict(losses), group_size, None
    try:
        yield
    finally:
        pretrainer.losses, pretrainer.group_size, pretrainer.global_group = kept


def validation_of(run: TrainingRun, settings: ValidationConfig, record: Record, busy: Callable[[], AbstractContextManager[None]]) -> Validation:
    """The hook that a run's settings ask for; every rank must call.

    Raises ConfigError or DataError, with the setting's name, where the held-out pairs cannot be had.
    """
    config = run.config
    dataset = open_held_out(settings.dataset, settings.manifest, run.world, run.loader.dataset.parts[0].dataset.reader)
    held_out = run.world.together(
        lambda: HeldOut(
            dataset,
            run.tokenizer,
            image_size=config.model.image_size,
            max_tokens=config.max_tokens,
            mlm_probability=config.mlm_probability,
            max_pairs=settings.max_pairs,
            group_size=config.group_size,
        )
    )
    validation = Validation(
        run.engine,
        run.engine.module,
        run.teacher.model,
        held_out,
        run.world,
        record,
        every_steps=settings.every_steps,
        with_teacher=settings.teacher,
        precision=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        busy=busy,
    )
    if validation.teacher_pass:
        run.teacher.whole_during(validation.teacher_pass)
    return validation

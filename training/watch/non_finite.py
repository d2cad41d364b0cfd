"""Why an optimizer step was skipped: which loss on which rank, and the sample, the parameter or the gradient it came from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from training.batch import Batch
from training.distributed import World
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.objective import StepOutput


@dataclass(frozen=True)
class IllSample:
    """One sample, and what of it alone is not finite, e.g. `picture`, `student's image states`; nothing where its row does not stand out."""

    key: str
    what: list[str]


@dataclass(frozen=True)
class IllMicroBatch:
    """One micro-batch of one rank with a loss or with rows that are not finite."""

    rank: int
    micro_batch: int
    losses: dict[str, str]  # name -> nan, inf, -inf
    samples: list[IllSample]  # those whose rows are not finite; else all of them, where nothing else is to blame
    named: bool  # the first of these
    everywhere: list[str]  # what is not finite in every row, and so names none


@dataclass(frozen=True)
class SkippedStep:
    """One skipped step, the same on every rank; JSON-able by `asdict`."""

    step: int  # optimizer steps taken, this one included
    micro_batches: list[IllMicroBatch]
    weights: list[str] = field(default_factory=list)  # parameters, and the feature queue, that hold a value that is not finite
    gradients: list[str] = field(default_factory=list)  # towers whose gradient's norm is not finite


def non_finite_losses(outputs: Sequence[StepOutput]) -> list[dict[str, str]]:
    """Of each micro-batch the losses that are not finite, and what they are; reads the device once."""
    names = list(outputs[0].losses)
    values = torch.stack([torch.stack([output.losses[name].detach().float() for name in names]) for output in outputs])
    return [{name: str(value) for name, value in zip(names, row, strict=True) if not isfinite(value)} for row in values.tolist()]


def diagnose(
    world: World,
    step: int,
    micro_batches: Sequence[Batch],
    outputs: Sequence[StepOutput],
    student: Albef,
    teacher: Albef,
    queue: FeatureQueue,
    grad_norms: Mapping[str, float],
    autocast: Callable[[], AbstractContextManager[object]],
) -> SkippedStep:
    """Why step number `step` was skipped; every rank must call, and each makes the same module calls whatever it finds.

    The encoders of student and teacher run once more over `micro_batches`, without gradient and dropout, under `autocast()`: the rows
    whose states are not finite name their samples. Where no rank finds such a row and no weight is to blame, all samples of the micro-batches whose
    losses are not finite are listed. `grad_norms`: of each tower, over all ranks.
    """
    losses = non_finite_losses(outputs)
    with torch.compiler.set_stance("force_eager"):  # else blocks would be compiled anew for these passes, for minutes
        rows = [_ill_rows(batch.to(world.device), student, teacher, autocast) for batch in micro_batches]
    weights = _ill_weights({"student": student, "teacher": teacher}, queue)
    found = [_found(world.rank, number, losses[number], batch, rows[number]) for number, batch in enumerate(micro_batches)]
    told = world.of_all(([one for one in found if one.losses or one.named], weights))
    everyone, all_weights = [one for of_rank, _ in told for one in of_rank], sorted({name for _, of_rank in told for name in of_rank})
    if all_weights or any(one.named for one in everyone):
        everyone = [one if one.named else replace(one, samples=[]) for one in everyone]
    return SkippedStep(step, everyone, all_weights, [tower for tower, norm in grad_norms.items() if not isfinite(norm)])


def _found(rank: int, number: int, losses: dict[str, str], batch: Batch, rows: Mapping[str, Sequence[bool]]) -> IllMicroBatch:
    """`rows`: of each thing that can be ill, whether it is in each row."""
    what_of = [[what for what, ill in rows.items() if ill[row] and not all(ill)] for row in range(len(batch))]
    named = any(what_of)
    samples = [IllSample(key, what) for key, what in zip(batch.sample_keys, what_of, strict=True) if what or not named]
    return IllMicroBatch(rank, number, losses, samples, named, [what for what, ill in rows.items() if all(ill)])


@torch.no_grad()
def _ill_rows(batch: Batch, student: Albef, teacher: Albef, autocast: Callable[[], AbstractContextManager[object]]) -> dict[str, list[bool]]:
    pixels = batch.pixels(torch.float32)
    ill = {"picture": _not_finite(pixels)}
    for name, model, kept in (("student", student, batch.kept_patches), ("teacher", teacher, None)):
        with _evaluating(model), autocast():
            ill[f"{name}'s image states"] = _not_finite(model.encode_image(pixels.to(model.image_projection.weight.dtype), kept))
            ill[f"{name}'s text states"] = _not_finite(model.encode_text(batch.input_ids, batch.attention_mask))
    return dict(zip(ill, torch.stack(list(ill.values())).tolist(), strict=True))


def _not_finite(rows: Tensor) -> Bool[Tensor, " b"]:
    return ~torch.isfinite(rows).flatten(1).all(dim=1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would draw random numbers that the next step is to draw."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _ill_weights(models: Mapping[str, Albef], queue: FeatureQueue) -> list[str]:
    tensors = {f"{of} {name}": _local(parameter) for of, model in models.items() for name, parameter in model.named_parameters()}
    tensors |= {"feature queue (image)": queue.image, "feature queue (text)": queue.text}
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _local(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of it: under ZeRO-3 a piece, the last of which is padded with what happened to be in memory."""
    partitioned: Any = parameter
    if not hasattr(partitioned, "ds_tensor"):
        return parameter.detach()
    piece: Tensor = partitioned.ds_tensor.detach().flatten()
    return piece[: max(0, partitioned.ds_numel - torch.distributed.get_rank() * len(piece))]

"""What a checkpoint holds of student, teacher, AdamW and queue, and how a run of any world size and ZeRO stage takes it over."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import Checkpoint
from training.feature_queue import FeatureQueue
from training.teacher import Teacher
from training.zero.layout import whole_parameters
from training.zero.partition import MOMENTS, Partition, Piece

Tensors = dict[str, dict[str, Tensor]]  # file name without suffix -> named tensors


def take(partition: Partition, teacher: Teacher, queue: FeatureQueue) -> Tensors:
    """This rank's share of the files, whole tensors on the CPU that nobody changes; every rank must call. Rank 0 alone has the queue."""

    def whole(values: Sequence[Tensor]) -> dict[str, Tensor]:
        return whole_parameters(partition.flats, values, partition.rank, queue.image.device)

    optimizer: dict[str, Tensor] = {}
    for moment in MOMENTS:
        optimizer |= {f"{moment}.{name}": tensor for name, tensor in whole([getattr(piece, moment) for piece in partition.own]).items()}
    tensors = {
        "student": whole([piece.master for piece in partition.own]),
        "teacher": whole([average for _, average in teacher.spans]),
        "optimizer": optimizer,
    }
    if partition.rank == 0:
        tensors["queue"] = {name: ring.cpu().clone() for name, ring in queue.state_dict().items() if name != "position"}
    return tensors


def restore(saved: Checkpoint, partition: Partition, teacher: Teacher, queue: FeatureQueue) -> None:
    """Each rank reads the spans it has, and nothing else; every rank must call."""
    student, averages, moments = saved.slices("student"), saved.slices("teacher"), saved.slices("optimizer")
    with torch.no_grad():
        for piece in partition.held:
            _fill(piece.master, piece, student.read)
            for moment in MOMENTS:
                _fill(getattr(piece, moment), piece, lambda name, start, length, moment=moment: moments.read(f"{moment}.{name}", start, length))
        for span, average in teacher.spans:
            average.copy_(averages.read(span.name, span.start, span.length))
        for step in partition.steps:
            step.fill_(saved.state["adam_step"])
    partition.refresh()
    teacher.refresh()
    queue.load_state_dict({**saved.tensors("queue"), "position": saved.state["queue_position"]})


def _fill(target: Tensor, piece: Piece, read: Callable[..., Any]) -> None:
    target.copy_(read(piece.span.name, piece.span.start, piece.span.length))

"""What the tests of saving write: tensors whose elements say of which step and rank they are."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import Checkpoint, Saver, read
from training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
WORDS = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"


def tensors(step: int, rank: int = 0, elements: int = 1000) -> dict[str, dict[str, Tensor]]:
    """Of a student and its optimizer, each rank its own; the queue is rank 0's."""
    of_all = {
        "student": {f"weight.{rank}": torch.full((elements,), step + rank / 10)},
        "optimizer": {f"exp_avg.weight.{rank}": torch.full((elements,), -float(step))},
    }
    return of_all | ({"queue": {"image": torch.full((2, 3), float(step))}} if rank == 0 else {})


def record(step: int) -> dict[str, Any]:
    return {"state": {"step": step}, "model": {}, "training": {}}


def save(saver: Saver, step: int, elements: int = 1000) -> None:
    first = saver.world.rank == 0
    saver.save(step, tensors(step, saver.world.rank, elements), {"vocab.txt": WORDS} if first else {}, record(step) if first else {})


def is_of(found: Checkpoint, step: int, ranks: int = 1) -> bool:
    """Whether the checkpoint is whole and of this step."""
    found.verify()
    expected = [tensors(step, rank) for rank in range(ranks)]
    wanted = {kind: {name: tensor for part in expected for name, tensor in part.get(kind, {}).items()} for kind in expected[0]}
    return found.step == step and all(
        found.tensors(kind).keys() == named.keys() and all(torch.all(found.tensors(kind)[name] == tensor.flatten()[0]) for name, tensor in named.items())
        for kind, named in wanted.items()
    )


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.glob("step-*"))]


def newest_is(folder: Path | str, step: int, ranks: int = 1) -> bool:
    return is_of(read(str(folder)), step, ranks)

"""Folders of DeepSpeed's `save_checkpoint`, ZeRO stages 0 to 3, put together to whole fp32 tensors; no code of theirs is run."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import DataError
from training.weights.files import State, torch_content, without_wrapper

log = logging.getLogger(__name__)
MODEL, OPTIMIZER = "_model_states.pt", "_optim_states.pt"
THEIR_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
Shapes = Mapping[str, tuple[int, ...]]


class _Ignored:
    """Stands for an object of theirs beside the tensors; it keeps nothing and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def folder_of(path: str) -> str | None:
    """The folder with DeepSpeed's files that `path` means: itself, or the one that its `latest` names; None when there is none."""
    if _files(path, MODEL):
        return path
    latest = storage.join(path, "latest")
    if not storage.is_file(latest):
        return None
    named = storage.join(path, storage.read_bytes(latest).decode(errors="replace").strip())
    return named if _files(named, MODEL) else None


def read(path: str) -> State:
    """The module's parameters and buffers in fp32, under its own names: where ZeRO kept fp32 masters, those.

    Raises:
        DataError: files are missing, damaged, of another kind, or hold more than plain values.
    """
    folder = folder_of(path)
    if folder is None:
        raise DataError(f"{path}: no DeepSpeed checkpoint here (no mp_rank_00{MODEL}, no latest that names a folder with one)")
    if parallel := [name for name in _files(folder, MODEL) if "mp_rank_00" not in name]:
        raise DataError(f"{folder}: {parallel[0]} is of a model that was split over several GPUs (tensor or pipeline parallel), which is not supported")
    try:
        return without_wrapper(folder, _put_together(folder))
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise DataError(f"{folder}: not as DeepSpeed 0.19 writes it ({type(error).__name__}: {str(error).splitlines()[0]})") from error


def _put_together(folder: str) -> State:
    models = [_content(storage.join(folder, name)) for name in _files(folder, MODEL)]
    shards = [_content(storage.join(folder, name))["optimizer_state_dict"] for name in _files(folder, OPTIMIZER)]
    model = models[0]
    if not shards:  # stage 0
        log.info("%s: no optimizer shards (ZeRO stage 0): the model's own numbers, which in bf16 or fp16 runs are rounded", folder)
        return _in_fp32(model["module"])
    ranks = max(counts) if isinstance(counts := shards[0]["partition_count"], list) else counts
    partitioned = "fp32_flat_groups" in shards[0]  # stage 3
    if len(shards) != ranks or (partitioned and len(models) != ranks):
        raise DataError(f"{folder}: has {len(shards)} *{OPTIMIZER} of {ranks} ranks; copy those of all nodes there")
    if partitioned:
        state = _in_fp32({name: value for name, value in model["module"].items() if name in model["buffer_names"]})
        frozen: Shapes = model["frozen_param_shapes"] or {}
        state |= {name: _joined((part["frozen_param_fragments"][name] for part in models), shape) for name, shape in frozen.items()}
        state |= _of_partitioned(folder, [torch.cat(shard["fp32_flat_groups"]) for shard in shards], model["param_shapes"])
    else:  # the frozen ones are whole, and stage 1 lists them nowhere else
        state = _in_fp32(model["module"]) | _of_groups(folder, shards, model["param_shapes"])
    return state | {other: state[name] for other, name in model["shared_params"].items() if name in state}


def _of_groups(folder: str, shards: list[dict[str, Any]], groups: list[Shapes]) -> State:
    """Stages 1 and 2: of each parameter group one flat vector, cut into equal shares."""
    state: State = {}
    paddings = shards[0].get("param_alignment_paddings") or [[0] * len(shapes) for shapes in groups]
    for number, (shapes, padding) in enumerate(zip(groups, paddings, strict=True)):
        flat, begin = torch.cat([shard["single_partition_of_fp32_groups"][number] for shard in shards]), 0
        for (name, shape), behind in zip(shapes.items(), padding, strict=True):
            state[name] = _joined([flat[begin:]], shape)
            begin += math.prod(shape) + behind
        _refuse_left_over(folder, len(flat) - begin, 2 * len(shards))  # it pads a group to a multiple of this
    return state


def _of_partitioned(folder: str, flats: list[Tensor], groups: list[Shapes]) -> State:
    """Stage 3: of each parameter every rank has an equal share, the last ones padded."""
    state, begin = {}, 0
    for name, shape in ((name, shape) for shapes in groups for name, shape in shapes.items()):
        share = math.ceil(math.prod(shape) / len(flats))
        state[name] = _joined((flat[begin : begin + share] for flat in flats), shape)
        begin += share
    _refuse_left_over(folder, len(flats[0]) - begin, 1)
    return state


def _joined(parts: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    flat = torch.cat([part.detach().reshape(-1) for part in parts])[: math.prod(shape)]
    return flat.float().reshape(shape).clone()


def _refuse_left_over(folder: str, elements: int, alignment: int) -> None:
    if not 0 <= elements < alignment:
        raise DataError(f"{folder}: its shards and its shapes differ by {elements} elements; were files of two checkpoints mixed?")


def _in_fp32(named: Mapping[str, Tensor]) -> State:
    return {name: value.float() if value.is_floating_point() else value for name, value in named.items()}


def _content(path: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([(_Ignored, name) for name in THEIR_CLASSES]):
        content = torch_content(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: not one of DeepSpeed's files")
    return content


def _files(folder: str, suffix: str) -> list[str]:
    """In the order of ranks: rank 10 after rank 9."""
    numbers = re.compile(r"\d+")
    return sorted((name for name in storage.list_files(folder) if name.endswith(suffix)), key=lambda name: [int(number) for number in numbers.findall(name)])

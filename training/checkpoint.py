"""Checkpoints: named tensors in safetensors files and a manifest that is written last; no pickle, any world size, disk or S3.

    checkpoints/latest                    name of the newest checkpoint whose files were read back and verified
    checkpoints/step-0000400/
        student.safetensors               fp32 master weights
        teacher.safetensors               fp32 moving average
        optimizer.safetensors             AdamW's moments, `exp_avg.<name>` and `exp_avg_sq.<name>`
        queue.safetensors                 teacher features
        vocab.txt
        extra.safetensors                 of an imported file: what the model has no place for
        manifest.json                     sizes and sha256 of the files, counters, data position, configuration

A folder without a manifest is not a checkpoint: whatever was being written when a process died is invisible.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.config import validate
from pipeline.core.errors import ConfigError, DataError
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer
from training.weights.files import load_strictly, modules_of, write_once

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint: its folder and what its manifest says."""

    path: str
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken, skipped ones included."""
        return int(self.manifest["state"]["step"])

    @property
    def state(self) -> dict[str, Any]:
        """Counters and the data position at the moment of saving."""
        state: dict[str, Any] = self.manifest["state"]
        return state

    @property
    def model_config(self) -> ModelConfig:
        return validate(ModelConfig, self.manifest["model"], origin=f"{self.path}/manifest.json")

    @property
    def published(self) -> dict[str, Any]:
        """Of an imported checkpoint: the published file's name, its kind (`variant`) and what it did not have (`fresh`)."""
        published: dict[str, Any] = self.manifest.get("published", {})
        return published

    @property
    def fresh(self) -> list[str]:
        """Parameters that no file and no training step has given a value."""
        fresh: list[str] = self.published.get("fresh", [])
        return fresh

    def has(self, name: str) -> bool:
        """Whether there is such a file, e.g. `optimizer`."""
        return f"{name}.safetensors" in self.manifest["files"]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, e.g. `student`, on the CPU; the file's checksum is compared first."""
        file = f"{name}.safetensors"
        return safetensors.torch.load(_verified_bytes(self, file))

    def slices(self, name: str) -> "_Slices":
        return _Slices(self.tensors(name))

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(_verified_bytes(self, "vocab.txt").decode().rstrip("\n").split("\n"))

    def verify(self) -> None:
        """Read every file back and compare; raises DataError on the first difference."""
        for file in self.manifest["files"]:
            _verified_bytes(self, file)


class _Slices:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, name: str, start: int, length: int) -> Tensor:
        return self._tensors[name].reshape(-1).narrow(0, start, length)


def name_of(step: int) -> str:
    """The folder of the checkpoint after `step` optimizer steps; names sort like steps."""
    return f"step-{step:07d}"


def write(folder: str, step: int, tensors: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer, record: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint, read it back, and only then point `latest` to it.

    Args:
        tensors: file name without suffix -> named tensors.
        record: `state`, `model` and `training` as JSON values.
    """
    path = storage.join(folder, name_of(step))
    manifest, files = _contents(tensors, tokenizer, record)
    storage.remove(storage.join(path, "manifest.json"))  # of a damaged checkpoint of the same step: its files are about to change
    for file, data in files.items():
        storage.write_bytes(storage.join(path, file), data)
    checkpoint = Checkpoint(path, manifest)
    checkpoint.verify()
    storage.write_bytes(storage.join(folder, "latest"), name_of(step).encode())
    return checkpoint


def write_first(folder: str, tensors: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer, record: Mapping[str, Any]) -> Checkpoint:
    """As `write` of step 0, into a folder without checkpoints; writing the same once more is fine.

    Raises:
        ConfigError: other checkpoints are there.
    """
    if (name_of(0) != (latest := _latest(folder))) and latest is not None:
        raise ConfigError(f"{folder}: the checkpoints of a run are there ({latest}), and nothing is overwritten; choose another folder")
    path = storage.join(folder, name_of(0))
    manifest, files = _contents(tensors, tokenizer, record)
    write_once({storage.join(path, file): data for file, data in files.items()})
    checkpoint = Checkpoint(path, manifest)
    checkpoint.verify()
    write_once({storage.join(folder, "latest"): name_of(0).encode()})
    return checkpoint


def _contents(tensors: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer, record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and all files in the order they are written: the manifest is the last."""
    files = {f"{file}.safetensors": safetensors.torch.save(_contiguous(named)) for file, named in tensors.items()}
    files["vocab.txt"] = tokenizer.vocabulary_file()
    sums = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    manifest = {"format": FORMAT, **record, "files": sums}
    return manifest, files | {"manifest.json": json.dumps(manifest, indent=1).encode()}


def folder_of(path: str) -> str | None:
    """The checkpoint, or the folder of checkpoints, that `path` means: itself, or of a run directory the run's own; None when there is none."""
    places = (path, storage.join(path, "train", "checkpoints"))
    return next((place for place in places for name in ("latest", "manifest.json") if storage.exists(storage.join(place, name))), None)


def read(path: str) -> Checkpoint:
    """Open a checkpoint folder, or the newest one of a folder of checkpoints or of a run directory.

    Raises:
        DataError: nothing there, not ours, or of a format this version does not know.
    """
    path = folder_of(path) or path
    if latest := _latest(path):
        path = storage.join(path, latest)
    manifest_path = storage.join(path, "manifest.json")
    if not storage.exists(manifest_path):
        raise DataError(
            f"{path}: no checkpoint here (no manifest.json); give a run directory, or a folder like .../checkpoints or .../checkpoints/step-0000400"
        )
    try:
        manifest = json.loads(storage.read_bytes(manifest_path))
        known = manifest["format"] == FORMAT and "state" in manifest and "files" in manifest
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DataError(f"{manifest_path}: not a checkpoint manifest of format {FORMAT}; was it written by another program or version?")
    return Checkpoint(path, manifest)


def newest(folder: str) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when there is none yet."""
    latest = _latest(folder)
    if latest is None:
        return None
    steps = [name for name in reversed(_steps(folder)) if name <= latest]
    for name in steps:
        try:
            checkpoint = read(storage.join(folder, name))
            checkpoint.verify()
        except DataError as error:
            log.warning("checkpoint %s is damaged (%s); trying the one before", name, error)
        else:
            return checkpoint
    raise DataError(f"{folder}: 'latest' names {latest}, but no checkpoint up to it is whole; restore one, or remove the folder to start again")


def remove_old(folder: str, keep: int) -> None:
    """Keep the newest `keep` checkpoints up to `latest`; one after it was never verified and goes too.

    A removed one loses its manifest first, so it is never half a checkpoint.
    """
    latest = _latest(folder) or ""
    kept = [name for name in _steps(folder) if name <= latest][-keep:]
    for name in set(_steps(folder)) - set(kept):
        path = storage.join(folder, name)
        storage.remove(storage.join(path, "manifest.json"))
        storage.remove_tree(path)


def load_weights(model: Albef, weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy weights into the model; a missing, unexpected or differently shaped tensor is named in one DataError."""
    own = model.state_dict()
    tied = set(own) - {name for name, _ in model.named_parameters()}  # second names of tensors that are saved once
    load_strictly(model, {**weights, **{name: own[name] for name in tied}}, origin)


def load_for_evaluation(path: str, tower: str = "student") -> tuple[Albef, Tokenizer, ModelConfig]:
    """The model of a checkpoint in evaluation mode, its tokenizer and its sizes.

    Args:
        path: a checkpoint folder, or a folder of checkpoints (its `latest` is taken).
        tower: `student` or `teacher`.
    """
    checkpoint = read(path)
    model = Albef(checkpoint.model_config)
    load_weights(model, checkpoint.tensors(tower), origin=f"{checkpoint.path}/{tower}.safetensors")
    if checkpoint.fresh:
        log.warning("%s was imported from a file without %s: fresh weights, which tell nothing", checkpoint.path, ", ".join(modules_of(checkpoint.fresh)))
    return model.eval().requires_grad_(False), checkpoint.tokenizer(), checkpoint.model_config


def _latest(folder: str) -> str | None:
    path = storage.join(folder, "latest")
    return storage.read_bytes(path).decode().strip() if storage.exists(path) else None


def _steps(folder: str) -> list[str]:
    return [name for name in storage.list_folders(folder) if name.startswith("step-") and storage.exists(storage.join(folder, name, "manifest.json"))]


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}  # clones: safetensors refuses views that share storage


def _verified_bytes(checkpoint: Checkpoint, file: str) -> bytes:
    path = storage.join(checkpoint.path, file)
    expected = checkpoint.manifest["files"].get(file)
    if expected is None:
        raise DataError(f"{checkpoint.path}: has no {file}")
    data = storage.read_bytes(path)
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DataError(f"{path}: damaged ({len(data)} bytes, {expected['bytes']} expected, or another sha256); use an older checkpoint")
    return data

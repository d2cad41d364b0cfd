"""Open a checkpoint, see that it is whole, and load what it holds."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.config import validate
from pipeline.core.errors import DataError, StorageUnreachable
from training.checkpoint.layout import FORMAT, LATEST, MANIFEST, VOCABULARY, complete, kind_of, latest_of, manifest_of
from training.checkpoint.patience import ask_patiently
from training.checkpoint.place import remembered
from training.checkpoint.slices import Slices
from training.checkpoint.sums import check_file, compare
from training.distributed import World
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer
from training.weights.files import load_strictly, modules_of

log = logging.getLogger(__name__)
ALONE = World(rank=0, world_size=1, device=torch.device("cpu"))


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint: its folder and what its manifest says.

    Args:
        patience_s: seconds for which a store that does not answer is asked again, then Stopped is raised; None asks once.
    """

    path: str
    manifest: dict[str, Any]
    patience_s: float | None = None

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

    def files(self, kind: str) -> list[str]:
        """The files that hold the tensors of a kind, e.g. `student`."""
        return [file for file in self.manifest["files"] if kind_of(file) == kind]

    def has(self, kind: str) -> bool:
        """Whether there are tensors of a kind, e.g. `optimizer`."""
        return bool(self.files(kind))

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """All tensors of a kind, on the CPU; the checksums of their files are compared first."""
        return {name: tensor for file in self._files_that_exist(kind) for name, tensor in safetensors.torch.load(self._verified_bytes(file)).items()}

    def slices(self, kind: str) -> Slices:
        """The tensors of a kind, to be read in parts; nothing is compared, `verify` does that."""
        return Slices([storage.join(self.path, file) for file in self._files_that_exist(kind)], self.patience_s)

    def tokenizer(self) -> Tokenizer:
        file = next((file for file in self.manifest["files"] if file.rpartition("/")[2] == VOCABULARY), VOCABULARY)
        return Tokenizer(self._verified_bytes(file).decode().rstrip("\n").split("\n"))

    def verify(self, files: Iterable[str] | None = None) -> None:
        """Read files back in small pieces, all of them unless `files` are named, and compare; raises DataError on the first difference."""
        for file in self.manifest["files"] if files is None else files:
            path, expected = storage.join(self.path, file), self._expected(file)
            ask_patiently(partial(check_file, path, expected), path, self.patience_s)

    def _files_that_exist(self, kind: str) -> list[str]:
        if not self.has(kind):
            raise DataError(f"{self.path}: has no {kind}.safetensors")
        return self.files(kind)

    def _expected(self, file: str) -> dict[str, Any]:
        if file not in self.manifest["files"]:
            raise DataError(f"{self.path}: has no {file}")
        expected: dict[str, Any] = self.manifest["files"][file]
        return expected

    def _verified_bytes(self, file: str) -> bytes:
        path, expected = storage.join(self.path, file), self._expected(file)
        data = ask_patiently(partial(storage.read_bytes, path), path, self.patience_s)
        compare(path, len(data), hashlib.sha256(data).hexdigest(), expected)
        return data


def folder_of(path: str) -> str | None:
    """The checkpoint, or the folder of checkpoints, that `path` means: itself, or of a run directory the run's own; None when there is none."""
    places = (path, remembered(path))
    return next((place for place in places for name in (LATEST, MANIFEST) if storage.exists(storage.join(place, name))), None)


def read(path: str, patience_s: float | None = None) -> Checkpoint:
    """Open a checkpoint folder, or the newest one of a folder of checkpoints or of a run directory.

    Args:
        patience_s: of the checkpoint, and of opening it.

    Raises:
        DataError: nothing there, not ours, or of a format this version does not know.
        Stopped: the store did not answer for `patience_s`.
    """
    return replace(ask_patiently(partial(_read, path), path, patience_s), patience_s=patience_s)


def _read(path: str) -> Checkpoint:
    path = folder_of(path) or path
    if latest := latest_of(path):
        path = storage.join(path, latest)
    if manifest := manifest_of(path):
        return Checkpoint(path, manifest)
    manifest_path = storage.join(path, MANIFEST)
    if storage.exists(manifest_path):
        raise DataError(f"{manifest_path}: not a checkpoint manifest of format {FORMAT}; was it written by another program or version?")
    raise DataError(f"{path}: no checkpoint here (no manifest.json); give a run directory, or a folder like .../checkpoints or .../checkpoints/step-0000400")


def newest(folder: str, world: World = ALONE, patience_s: float | None = None) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None when there is none yet.

    Args:
        world: ranks that all call this; each reads its share of the files.
        patience_s: of the checkpoint, and of looking for it.

    Raises:
        DataError: there are checkpoints, and none is whole; or the storage cannot be reached.
        Stopped: the store did not answer for `patience_s`.
    """
    names_of_all = world.together(lambda: ask_patiently(lambda: (latest_of(folder), complete(folder)), folder, patience_s))
    latest, names = world.from_first(names_of_all)
    if latest is None:
        return None
    for name in reversed([name for name in names if name <= latest]):
        path = storage.join(folder, name)
        damages = world.of_all(world.together(partial(_damage, path, world, patience_s)))
        found = next((damage for damage in damages if damage), None)
        if found is None:
            return world.together(partial(read, path, patience_s))
        if world.rank == 0:
            log.warning("checkpoint %s is damaged (%s); trying the one before", name, found)
    raise DataError(f"{folder}: 'latest' names {latest}, but no checkpoint up to it is whole; restore one, or remove the folder to start again")


def _damage(path: str, world: World, patience_s: float | None) -> str | None:
    """What is wrong with this rank's share of the files; that the storage is away says nothing about them."""
    try:
        checkpoint = read(path, patience_s)
        checkpoint.verify(list(checkpoint.manifest["files"])[world.rank :: world.world_size])
    except StorageUnreachable:
        raise
    except DataError as error:
        return str(error)
    return None


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

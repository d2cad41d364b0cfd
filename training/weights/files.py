"""Named tensors out of strangers' files, and strictly into a module: pickles are never executed, every misfit is one line."""

import io
import logging
import math
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError
from training.weights.pickles import why_unreadable

log = logging.getLogger(__name__)
State = dict[str, Tensor]
WRAPPER = "module."
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read_weights(path: str) -> State:
    """The tensors of a .safetensors file or of a torch file (bare, or under "model" or "state_dict"), on disk or s3://.

    Raises:
        DataError: missing, damaged, more than plain tensors, or tensors that claim to be larger than what is stored.
    """
    if not storage.exists(path):
        raise DataError(f"{path}: no such checkpoint file")
    content = safetensors_in(storage.read_bytes(path), path) if _is_safetensors(path) else torch_content(path)
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise DataError(f"{path}: holds no named tensors; expected a state dict, bare or under 'model' or 'state_dict'")
    for name, value in content.items():
        _check_stored(path, name, value)
    return without_wrapper(path, content)


def is_weights_file(path: str) -> bool:
    """One file rather than a folder; of any name when it is there, by its name when it is not."""
    return path.endswith(SUFFIXES) or storage.is_file(path)


def safetensors_in(data: bytes, origin: str) -> State:
    """The tensors of a .safetensors file that is in memory."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the library raises SafetensorError, KeyError for a type it does not know, and others
        raise _unreadable(origin, error) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """`load_state_dict` that answers a misfit with one line.

    Raises:
        DataError: names every missing and unexpected key, or the first key of another shape with both shapes.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_names(origin, own, state)
    check_shapes(origin, own, state)
    module.load_state_dict(dict(state))


def check_names(origin: str, expected: Collection[str], found: Collection[str]) -> None:
    """Raises DataError that names every missing and every unexpected key."""
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if parts:
        raise DataError(f"{origin}: keys do not fit the model: {'; '.join(parts)}")


def check_shapes(origin: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Raises DataError for the first tensor of another shape than expected."""
    for name, value in found.items():
        if tuple(value.shape) != expected[name]:
            raise DataError(f"{origin}: {name} has shape {tuple(value.shape)}, the model's is {expected[name]}; use a checkpoint of the configured sizes")


def check_finite(origin: str, state: Mapping[str, Tensor]) -> None:
    """Raises DataError that names tensors with NaN or infinite numbers."""
    if broken := [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value.float()).all()]:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise DataError(f"{origin}: NaN or infinite numbers in {', '.join(broken[:3])}{more}; a run diverged or the file is damaged, use an older one")


def modules_of(names: Iterable[str]) -> list[str]:
    """What parameters belong to, by the first part of their names."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def torch_bytes(content: Mapping[str, Any]) -> bytes:
    """What torch.save writes; the same tensors in the same order give the same bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_once(files: Mapping[str, bytes]) -> None:
    """Write files (path -> content) in their order, each atomically; those that are there with the same content stay.

    Raises:
        ConfigError: another file is there; nothing was written then.
    """
    present = {path for path in files if storage.exists(path)}
    for path in present:
        if storage.size(path) != len(files[path]) or storage.read_bytes(path) != files[path]:
            raise ConfigError(f"{path}: another file is there, and nothing is overwritten; remove it or choose another name")
    for path, data in files.items():
        if path not in present:
            storage.write_bytes(path, data)


def _is_safetensors(path: str) -> bool:
    """By the suffix or, whatever the name, by the brace that opens the header after its length."""
    return path.endswith(".safetensors") or storage.read_range(path, 0, 9)[8:] == b"{"


def without_wrapper(path: str, state: State) -> State:
    """Names as they are before DistributedDataParallel wraps a model."""
    if not all(name.startswith(WRAPPER) for name in state):
        return state
    log.info("%s: every key begins with %r, which DistributedDataParallel puts there: left out", path, WRAPPER)
    return {name.removeprefix(WRAPPER): value for name, value in state.items()}


def torch_content(path: str) -> Any:
    """What torch.save wrote: plain tensors and values, in dicts and lists.

    Raises:
        DataError: missing, damaged, compressed, or holds more than that.
    """
    with storage.open_read(path) if storage.is_local(path) else io.BytesIO(storage.read_bytes(path)) as file:  # torch seeks hundreds of times
        try:
            _refuse_compressed(path, file)
            with warnings.catch_warnings():  # about the pickle's protocol: what it comes to, we say ourselves
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(file, map_location="cpu", weights_only=True)
        except DataError:
            raise
        except Exception as error:  # on a damaged file the restricted unpickler fails as it happens to: IndexError, AttributeError, struct.error, ...
            raise DataError(f"{path}: not a readable checkpoint of plain tensors ({why_unreadable(file)})") from error


def _refuse_compressed(path: str, file: Any) -> None:  # BytesIO or a file: what they share, typing's BinaryIO, the checker of our tests does not see
    """torch stores its records as they are; a compressed one is a bomb that unpacks in memory."""
    if zipfile.is_zipfile(file):
        file.seek(0)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()):
            raise DataError(f"{path}: not a readable checkpoint of plain tensors (its records are compressed, which torch never does)")
    file.seek(0)


def _check_stored(path: str, name: str, value: Tensor) -> None:
    """A view of stride 0 would make terabytes out of four bytes as soon as it is copied."""
    if value.layout != torch.strided or math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
        raise DataError(f"{path}: {name} claims the shape {tuple(value.shape)}, but the file stores less; not a checkpoint of plain tensors")


def _unreadable(path: str, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    return DataError(f"{path}: not a readable checkpoint of plain tensors ({reason})")

"""Write a checkpoint: tensors as a stream of safetensors bytes, the manifest when all files were read back, and `latest` last."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import ConfigError
from training.checkpoint.layout import FORMAT, LATEST, MANIFEST, VOCABULARY, content, file_of, free_place, latest_of, name_of
from training.checkpoint.reading import Checkpoint
from training.checkpoint.sums import Damaged, check_file
from training.tokenizer import Tokenizer
from training.weights.files import write_once

DTYPES = {  # in the order in which the library writes them: what needs the widest alignment comes first
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
PIECE = 1 << 24  # bytes written at once: what an object store's client copies of a tensor


def encoded(tensors: Mapping[str, Tensor]) -> Iterator[bytes]:
    """A safetensors file in pieces, byte for byte the library's own, but without a second copy of all tensors."""
    order = list(DTYPES)
    ordered = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        for begin in range(0, len(data), PIECE):
            yield data[begin : begin + PIECE].numpy().tobytes()


def write_file(path: str, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write a file and read it back; its `bytes` and `sha256`.

    Raises:
        Damaged: what is read is not what was written.
    """
    digest, size = hashlib.sha256(), 0
    with storage.atomic_write(path) as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    written = {"bytes": size, "sha256": digest.hexdigest()}
    check_file(path, written)
    return written


def write_tensors(path: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As `write_file`, with the names of the tensors."""
    return {**write_file(path, encoded(tensors)), "tensors": sorted(tensors)}


def publish(folder: str, step: int, manifest: Mapping[str, Any]) -> Checkpoint:
    """Make files that were written and verified a checkpoint, and the newest one."""
    path = storage.join(folder, name_of(step))
    for file, data in ((storage.join(path, MANIFEST), json.dumps(manifest, indent=1).encode()), (storage.join(folder, LATEST), name_of(step).encode())):
        storage.write_bytes(file, data)
        if content(file) != data:
            raise Damaged(f"{file}: is not what was written")
    return Checkpoint(path, dict(manifest))


def write(folder: str, step: int, tensors: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer, record: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint, read it back, and only then point `latest` to it.

    Args:
        tensors: kind, e.g. `student` -> named tensors.
        record: `state`, `model` and `training` as JSON values.
    """
    path = storage.join(folder, name_of(step))
    place = free_place(path)
    files = {f"{place}{file_of(kind)}": write_tensors(f"{path}/{place}{file_of(kind)}", named) for kind, named in tensors.items()}
    files[f"{place}{VOCABULARY}"] = write_file(f"{path}/{place}{VOCABULARY}", [tokenizer.vocabulary_file()])
    return publish(folder, step, {"format": FORMAT, **record, "files": files})


def write_first(folder: str, tensors: Mapping[str, Mapping[str, Tensor]], tokenizer: Tokenizer, record: Mapping[str, Any]) -> Checkpoint:
    """As `write` of step 0, into a folder without checkpoints; writing the same once more is fine.

    Raises:
        ConfigError: other checkpoints are there.
    """
    if (name_of(0) != (latest := latest_of(folder))) and latest is not None:
        raise ConfigError(f"{folder}: the checkpoints of a run are there ({latest}), and nothing is overwritten; choose another folder")
    path = storage.join(folder, name_of(0))
    files = {file_of(kind): b"".join(encoded(named)) for kind, named in tensors.items()} | {VOCABULARY: tokenizer.vocabulary_file()}
    sums: dict[str, dict[str, Any]] = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    for kind, named in tensors.items():
        sums[file_of(kind)]["tensors"] = sorted(named)
    manifest = {"format": FORMAT, **record, "files": sums}
    write_once({storage.join(path, file): data for file, data in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items()})
    checkpoint = Checkpoint(path, manifest)
    checkpoint.verify()
    write_once({storage.join(folder, LATEST): name_of(0).encode()})
    return checkpoint

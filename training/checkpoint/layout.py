"""What the files of checkpoints are called, and which checkpoints a folder has."""

import json
import re
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError

FORMAT = 1
LATEST, MANIFEST, VOCABULARY = "latest", "manifest.json", "vocab.txt"
AGAIN = "again/"  # folder in a checkpoint's, of one that replaces it
FILE = re.compile(r"(?:.*/)?(?P<kind>\w+?)(?:-\d{5}-of-\d{5})?\.safetensors")


def name_of(step: int) -> str:
    """The folder of the checkpoint after `step` optimizer steps; names sort like steps."""
    return f"step-{step:07d}"


def step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def file_of(kind: str, part: int = 1, parts: int = 1) -> str:
    """The file of a kind (`student`, `optimizer`, ...), or of its `part`, counted from 1."""
    return f"{kind}.safetensors" if parts == 1 else f"{kind}-{part:05d}-of-{parts:05d}.safetensors"


def kind_of(file: str) -> str | None:
    """Of which kind the tensors in `file` are; None for a file without tensors."""
    found = FILE.fullmatch(file)
    return found["kind"] if found else None


def content(path: str) -> bytes | None:
    """Of a small file; None when it is not there. Asked directly: a listing may be older than what another process wrote."""
    try:
        return storage.read_bytes(path)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def latest_of(folder: str) -> str | None:
    """The name that `latest` holds."""
    found = content(storage.join(folder, LATEST))
    return found.decode().strip() if found is not None else None


def manifest_of(path: str) -> dict[str, Any] | None:
    """The manifest of the checkpoint in `path`; None where there is none that this version knows."""
    try:
        manifest: dict[str, Any] = json.loads(content(storage.join(path, MANIFEST)) or b"")
        known = manifest["format"] == FORMAT and "state" in manifest and isinstance(manifest["files"], dict)
    except (ValueError, KeyError, TypeError):
        return None
    return manifest if known else None


def folders(folder: str) -> list[str]:
    """Names of the folders of checkpoints, whole or not, the oldest step first."""
    return [name for name in storage.list_folders(folder) if re.fullmatch(r"step-\d{7,}", name)]


def complete(folder: str) -> list[str]:
    """Names of the checkpoints, the oldest step first."""
    return [name for name in folders(folder) if MANIFEST in storage.list_files(storage.join(folder, name))]


def steps_in(folder: str) -> list[int]:
    """Of the checkpoints that were written to their end, in ascending order."""
    latest = latest_of(folder) or ""
    return [step_of(name) for name in complete(folder) if name <= latest]


def free_place(path: str) -> str:
    """Where in the folder of a checkpoint its files may be written: nothing, or `again/` where the checkpoint that is there uses the folder itself."""
    manifest = manifest_of(path)
    return AGAIN if manifest and any("/" not in file for file in manifest["files"]) else ""

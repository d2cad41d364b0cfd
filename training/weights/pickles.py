"""Why is this torch file refused? Read off its bytes and the opcodes of its pickle, without executing any of it."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any

TENSORS_ALONE = "; its author can save the tensors alone: torch.save({'model': model.state_dict()}, FILE)"
PLAIN = re.compile(
    r"torch\._utils\._rebuild\w*|torch\._tensor\._rebuild\w*|torch\.(\w*Storage|Size|device|[a-z]+\d+\w*)|collections\.(OrderedDict|defaultdict|Counter)"
)
VALUES = ("argparse.", "numpy.", "_codecs.", "omegaconf.", "pathlib.", "datetime.", "yacs.", "easydict.")  # what training scripts put beside their tensors
NEWEST_PROTOCOL = 3  # of which torch's restricted reader knows every opcode
LEGACY_PICKLES = 5  # in a file of torch before 1.6: magic number, version, system, content, keys


def why_unreadable(file: Any) -> str:
    """One clause for people.

    Args:
        file: seekable and binary; a torch file that `torch.load` with `weights_only` did not take.
    """
    file.seek(0)
    start = file.read(4)
    if not start:
        return "it is empty"
    if start == b"PK\x03\x04":
        return _of_archive(file)
    if start[:1] != b"\x80":
        return f"not a torch file, it begins with {start!r}"
    file.seek(0)
    return _of_pickle(file) or "cut short or damaged, or a pickle without tensors"


def _of_archive(file: Any) -> str:
    try:
        if not zipfile.is_zipfile(file):
            return "cut short: its directory, which comes last, is not there"
        archive = zipfile.ZipFile(file)
        pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not pickled:
            return "a zip archive, but not one of torch.save"
        return _of_pickle(io.BytesIO(archive.read(pickled[0]))) or "damaged: one of its records cannot be read"
    except Exception:  # zipfile meets damage as it happens to: BadZipFile, zlib.error, NotImplementedError, ...
        return "damaged: its pickle cannot be read"


def _of_pickle(file: Any) -> str | None:
    opcodes = list(_opcodes(file))
    foreign = [name for name in dict.fromkeys(_globals(opcodes)) if not PLAIN.fullmatch(name)]
    if foreign and all(name.startswith(VALUES) for name in foreign):
        return f"it holds {', '.join(foreign[:3])} beside its tensors{TENSORS_ALONE}"
    if foreign:
        return f"it holds code ({', '.join(foreign[:3])}) and is not loaded"
    protocol = max((int(argument) for name, argument in opcodes if name == "PROTO"), default=0)
    if protocol > NEWEST_PROTOCOL:
        return f"pickled with protocol {protocol}, torch.save's own is 2{TENSORS_ALONE}"
    return None


def _opcodes(file: Any) -> Iterator[tuple[str, Any]]:
    """(name, argument) of the pickles that follow each other, up to the first byte that is none."""
    try:
        for _ in range(LEGACY_PICKLES):
            for opcode, argument, _position in pickletools.genops(file):
                yield opcode.name, argument
    except Exception:  # a damaged pickle stops pickletools as it happens to: ValueError, UnicodeDecodeError, OverflowError, ...
        return


def _globals(opcodes: list[tuple[str, Any]]) -> Iterator[str]:
    """`module.name` of all that the pickle would import."""
    texts: list[str] = []
    for name, argument in opcodes:
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif isinstance(argument, str):
            texts.append(argument)

"""The two compiled helpers, where they could be built: what they do, simplejpeg and Pillow do too, to the same pixels but slower."""

import functools
import importlib
import logging
from types import ModuleType

log = logging.getLogger(__name__)


def _built(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"shards.pixels.{name}")
    except ImportError:
        return None


jpeg, resize = _built("_jpeg"), _built("_resize")


@functools.cache
def tell_what_is_missing() -> None:
    """One warning a process where pictures take the slower way."""
    missing = [work for module, work in ((jpeg, "decoding only the crop"), (resize, "resizing")) if module is None]
    if missing:
        log.warning(
            "%s not compiled, so the same pixels take longer; to have it, install a C compiler and the headers of libjpeg-turbo 2.1.5 or newer "
            "(libjpeg62-turbo-dev on Debian, libjpeg-turbo-devel on Fedora), then `pip install -e .` again",
            " and ".join(missing) + (" are" if len(missing) > 1 else " is"),
        )

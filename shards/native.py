"""The two compiled helpers, where they could be built: what they do, simplejpeg and Pillow do too, to the same pixels but slower."""

import functools
import importlib
import logging
from types import ModuleType

log = logging.getLogger(__name__)


def _built(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"shards.{name}")
    except ImportError:
        return None


jpeg, resize = _built("_jpeg"), _built("_resize")


@functools.cache
def tell_what_is_missing() -> None:
    """One warning a process where pictures take the slower way."""
    missing = [f"{work} ({needed})" for module, work, needed in ((jpeg, "decoding only the crop", "libjpeg-turbo's headers"), (resize, "resizing", "gcc"))
               if module is None]  # fmt: skip
    if missing:
        log.warning(
            "not compiled, so the same pixels take longer: %s; to have it, install a C compiler and libjpeg62-turbo-dev (Debian) or "
            "libjpeg-turbo-devel (Fedora), then `pip install -e .` again",
            ", ".join(missing),
        )

"""The one spelling of a caption: Unicode's composed form, no control characters, single spaces. What training does to words comes later."""

import re
import unicodedata

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def normalise(caption: str) -> str:
    """Composed (NFC), each control character a space, white space squeezed, ends stripped; `""` when nothing is left."""
    if caption.isascii() and caption.isprintable() and "  " not in caption and caption[:1] != " " and caption[-1:] != " ":
        return caption  # most of a list; the rest of this function would give the same
    return " ".join(CONTROL.sub(" ", unicodedata.normalize("NFC", caption)).split())

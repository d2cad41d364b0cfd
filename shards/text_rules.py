"""Captions and questions as ALBEF's tokenizer gets them: lower case, without punctuation, cut to a number of words."""

import re

MAX_WORDS = 30  # of a caption
_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_TO_SPACE = str.maketrans("-/", "  ")
_RUNS = re.compile(r"\s{2,}")


def pre_caption(text: str, max_words: int = MAX_WORDS) -> str:
    """The caption the model reads; a caption of punctuation alone becomes empty."""
    text = _plain(text).replace("<person>", "person")
    text = _RUNS.sub(" ", text).rstrip("\n").strip(" ")
    return _first_words(text, max_words)


def pre_question(text: str, max_words: int) -> str:
    """The question the model reads. Inner double spaces stay and count as empty words, as in the original."""
    return _first_words(_plain(text).rstrip(" "), max_words)


def _plain(text: str) -> str:
    return _DELETED.sub("", text.lower()).translate(_TO_SPACE)


def _first_words(text: str, max_words: int) -> str:
    words = text.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else text

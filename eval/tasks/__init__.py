"""The benchmarks; adding one is its folder and a line here."""

from collections.abc import Callable

from eval.task import Task
from eval.tasks.contrast import Contrast
from eval.tasks.masked_words import MaskedWords
from eval.tasks.retrieval import Retrieval

TASKS: dict[str, Callable[..., Task]] = {
    "retrieval": Retrieval,
    "contrast": Contrast,
    "masked_words": MaskedWords,
}

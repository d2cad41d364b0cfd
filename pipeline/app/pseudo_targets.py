"""The page of `albef inspect pseudo-targets`: samples with what the teacher would teach of them, as one HTML file."""

from dataclasses import dataclass
from pathlib import Path

import jinja2

from eval.pseudo_targets import Drawn, drawn_samples, load_teacher, pool_of, pseudo_targets, samples_of
from pipeline.core import storage
from pipeline.core.errors import DataError
from shards.dataset import Dataset


@dataclass(frozen=True)
class Choice:
    """What to show: the samples of `keys`, or `count` drawn ones; `words` to hide, or all that say something."""

    keys: tuple[str, ...]
    count: int
    seed: int
    words: tuple[str, ...]
    pool_size: int


def write_pseudo_targets(checkpoint_or_run: str, dataset_folder: str, choice: Choice, out: str) -> str:
    """Write the page to `out` and return that path.

    Raises DataError for a checkpoint, dataset, key or sample that cannot be used, and when no caption has one of the words.
    """
    dataset = Dataset.open(dataset_folder)
    chosen = Drawn(samples_of(dataset, choice.keys), []) if choice.keys else drawn_samples(dataset, choice.count, choice.seed)
    teacher = load_teacher(checkpoint_or_run)
    pool = pool_of(dataset, choice.pool_size, choice.seed)
    found = pseudo_targets(teacher, chosen.samples, pool, choice.words)
    if choice.words and not any(sample.words for sample in found):
        raise DataError(f"--words {','.join(choice.words)}: none of them is in the first caption of the {len(found)} samples; choose other words or samples")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.get_template("pseudo_targets.html.jinja").render(
        samples=found, left_out=chosen.left_out, teacher=teacher, dataset=dataset_folder, pool_size=len(pool)
    )
    storage.write_bytes(out, html.encode())
    return out

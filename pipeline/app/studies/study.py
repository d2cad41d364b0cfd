"""What a study is: a base configuration, variants of it, seeds, and what is written about its runs."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline.app.config import RunConfig
from pipeline.app.figures import commit, machine
from pipeline.app.studies.grid import Overrides, Run, carry_out, folder_of, runs_of
from pipeline.app.studies.intervals import Bounds, Interval
from pipeline.core import config as configuration
from pipeline.core import storage
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)
Row = dict[str, Any]
BOUNDS: dict[str, Bounds] = {"%": (0.0, 100.0), "nats": (0.0, math.inf)}  # by unit


@dataclass(frozen=True)
class Study:
    """A grid as data; `tell` makes rows and the page's context of finished runs, `pictures` what is drawn beside the page."""

    name: str
    variants: Mapping[str, Overrides]
    seeds: int
    settings: Overrides  # of all runs, on top of the base
    tell: Callable[[Sequence[Run]], list[Row]]
    page: Callable[[Mapping[str, Any]], str]
    pictures: Callable[[Sequence[Run]], Mapping[str, bytes]]
    always: tuple[str, ...] = ()  # variants that the others are compared with, so none is run without them


@dataclass(frozen=True)
class Choice:
    """Which part of a study to do: `seeds` and `only` variants (null is all), runs side by side, and where its page goes."""

    overrides: Overrides = ()
    seeds: int | None = None
    only: tuple[str, ...] | None = None
    jobs: int = 2
    docs: str | None = None


def run(study: Study, base: Path, choice: Choice, command: str) -> str:
    """Carry the study out and write `benchmarks/<name>.json`, `<name>.md` and its pictures; returns the page's path.

    Raises ConfigError for an unknown variant, and for a page of a part where that of the whole belongs; else what `carry_out` raises.
    """
    if choice.only is not None and choice.docs is not None:
        raise ConfigError(
            f"--only with --docs {choice.docs}: the page of a part would take the place of the whole study's; leave out --docs, and it goes to the run's folder"
        )
    variants = _chosen(study, choice.only)
    overrides = (*study.settings, *choice.overrides)
    runs = runs_of(study.name, base, overrides, variants, range(choice.seeds or study.seeds))
    world = configuration.load(RunConfig, base, overrides)
    carry_out(base, overrides, runs, choice.jobs)
    record = {
        "name": study.name,
        "command": command,
        "commit": commit(),
        "machine": machine(),
        **_world(world),
        **_cost(runs, choice.jobs),
        "rows": study.tell(runs),
    }
    folder = choice.docs or str(folder_of(study.name, world))
    storage.write_bytes(storage.join(folder, "benchmarks", f"{study.name.replace('-', '_')}.json"), (json.dumps(record, indent=1) + "\n").encode())
    for name, picture in study.pictures(runs).items():
        storage.write_bytes(storage.join(folder, name), picture)
    page = storage.join(folder, f"{study.name.replace('-', '_')}.md")
    storage.write_bytes(page, study.page(record).encode())
    return page


def row(case: str, unit: str, found: Interval, note: str) -> Row:
    """A line in the shape of docs/benchmarks, with its interval and the figure of each seed beside it."""
    three = [round(value, 3) + 0.0 for value in (found.mean, found.low, found.high)]  # + 0.0: no minus zero
    empty = {"peer": None, "peer_name": None, "ratio": None}
    seeds = [round(value, 3) + 0.0 for value in found.seeds]
    return {"case": case, "unit": unit, "ours": three[0], **empty, "note": note, "low": three[1], "high": three[2], "seeds": seeds}


def rendered(template: str, **context: Any) -> str:
    """A study's page; a name that the template asks for and the context lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**context)


def _chosen(study: Study, only: Sequence[str] | None) -> Mapping[str, Overrides]:
    if only is None:
        return study.variants
    if unknown := [name for name in only if name not in study.variants]:
        raise ConfigError(f"--only {','.join(only)}: {study.name} has no variant {unknown[0]}; it has {', '.join(study.variants)}")
    return {name: changes for name, changes in study.variants.items() if name in (*only, *study.always)}


def _world(base: RunConfig) -> Row:
    """What is wrong with the captions of the base's world; null where it draws none."""
    scenes = base.scenes
    return {"wrong_rate": scenes.wrong_rate if scenes else None, "vague_rate": scenes.vague_rate if scenes else None}


def _cost(runs: Sequence[Run], jobs: int) -> Row:
    """What the study took, and the lengths its page speaks of."""
    minutes = sum(run.minutes() for run in runs)
    training = runs[0].config.training
    assert training is not None
    lengths = {"steps": training.max_steps, "evaluate_every_steps": training.evaluate_every_steps}
    return {"runs": len(runs), "side_by_side": jobs, **lengths, "minutes_of_runs": round(minutes, 1), "minutes_in_all": round(minutes / jobs, 1)}

"""`albef run`: the stages in order; what is finished is skipped, what was interrupted continues."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from pipeline.core import storage
from pipeline.core.errors import ConfigError
from pipeline.core.run_directory import RunDirectory, fingerprint, rank

if TYPE_CHECKING:
    from ingest.config import IngestConfig

log = logging.getLogger(__name__)
Result = dict[str, Any]


def scenes(config: RunConfig, _directory: RunDirectory) -> Result:
    from pipeline.app.scenes.standin import train_standin
    from pipeline.app.scenes.write import write_world

    assert config.scenes is not None
    folder = Path(config.scenes.folder)
    counts = write_world(config.scenes, folder)
    return {**counts, "standin": str(train_standin(config.scenes, folder))}


def openclipart(config: RunConfig, _directory: RunDirectory) -> Result:
    from pipeline.app.openclipart.prepare import prepare

    assert config.openclipart is not None
    if config.pictures is None:
        raise ConfigError("pictures: the configuration has no such section, but the pair list of openclipart must name the port its pictures are served on")
    return prepare(Path(config.openclipart.folder), port=config.pictures.port)


def ingest(config: RunConfig, directory: RunDirectory) -> Result:
    import ingest.ingest

    assert config.ingest is not None
    with _pictures_served(config):
        return ingest.ingest.run(config.ingest, directory.path)


def train(config: RunConfig, directory: RunDirectory) -> Result:
    import training.engine

    assert config.training is not None
    return training.engine.run(config.training, directory.path, _validation(config, directory))


def evaluate(config: RunConfig, directory: RunDirectory) -> Result:
    import eval.suite

    assert config.eval is not None
    return eval.suite.run(config.eval, _checkpoint(config, directory), directory.path)


# The way of the data. A stage runs when its section is in the configuration.
STAGES: dict[str, tuple[str, Callable[[RunConfig, RunDirectory], Result]]] = {
    "scenes": ("scenes", scenes),
    "openclipart": ("openclipart", openclipart),
    "ingest": ("ingest", ingest),
    "train": ("training", train),
    "eval": ("eval", evaluate),
}


def run(config: RunConfig) -> Path:
    """Walk all configured stages and write the report; returns the report's path."""
    from pipeline.app.report import write_report

    directory = RunDirectory(Path(config.run.folder))
    with directory.locked():
        if config.pictures is not None and config.ingest is not None and directory.result("ingest") is None:
            _refuse_busy_port(config.pictures.port)
        for stage in STAGES:
            if getattr(config, STAGES[stage][0]) is not None:
                _run_unless_finished(stage, config, directory)
        return write_report(directory.path)


def run_stage(stage: str, config: RunConfig) -> Result:
    """One stage by itself, as on a machine of its own."""
    if getattr(config, STAGES[stage][0]) is None:
        raise ConfigError(f"{STAGES[stage][0]}: the configuration has no such section, so there is nothing to {stage}")
    directory = RunDirectory(Path(config.run.folder))
    if rank() > 0:  # rank 0 holds the lock and writes the record for all
        return _finished_result(stage, config, directory) or STAGES[stage][1](config, directory)
    with directory.locked():
        return _run_unless_finished(stage, config, directory)


def retry_failed(config: RunConfig) -> Result:
    """What ingest's web would not give, once more; the stage's record becomes that of the larger dataset."""
    import ingest.retry

    if config.ingest is None:
        raise ConfigError("ingest: the configuration has no such section, so there is nothing to try again")
    directory = RunDirectory(Path(config.run.folder))
    started = time.monotonic()
    with directory.locked(), _pictures_served(config):
        result = ingest.retry.run(config.ingest, directory.path)
        directory.finish("ingest", _fingerprint("ingest", config, directory), result, time.monotonic() - started)
    return result


def _run_unless_finished(stage: str, config: RunConfig, directory: RunDirectory) -> Result:
    finished = _finished_result(stage, config, directory)
    if finished is not None:
        log.info("stage %s: finished before, skipped", stage)
        if stage == "ingest" and config.ingest is not None:
            _tell_lost_shards(config.ingest.output)
        return finished
    log.info("stage %s", stage)
    started = time.monotonic()
    result = STAGES[stage][1](config, directory)
    storage.write_bytes(str(directory.path / "config.yaml"), configuration.dump(config).encode())
    directory.finish(stage, _fingerprint(stage, config, directory), result, time.monotonic() - started)
    return result


def _finished_result(stage: str, config: RunConfig, directory: RunDirectory) -> Result | None:
    """The result of a stage that finished with the same configuration on the same input."""
    record = directory.result(stage)
    if record is None or record["fingerprint"] != _fingerprint(stage, config, directory):
        return None
    result: Result = record["result"]
    return result


def _tell_lost_shards(dataset: str) -> None:
    """A record says that the dataset was made, not that it is still there."""
    from shards.manifest import read_manifest
    from shards.verify import lost_shards

    for _, reason in lost_shards(dataset, read_manifest(dataset)):
        log.warning("lost since: %s; `albef shards verify %s` holds all of it against its manifest", reason, dataset)


def _fingerprint(stage: str, config: RunConfig, directory: RunDirectory) -> str:
    """Of the stage's section, of all before it, and of what it reads: another list, dataset or checkpoint makes the stage run again."""
    sections = [STAGES[name][0] for name in STAGES]
    upto = sections[: sections.index(STAGES[stage][0]) + 1]
    settings = {name: getattr(config, name).model_dump(mode="json") for name in upto if getattr(config, name) is not None}
    return fingerprint({"settings": settings, "input": _input_mark(stage, config, directory)})


def _input_mark(stage: str, config: RunConfig, directory: RunDirectory) -> str | None:
    """A hash of what the stage reads; None when there is nothing yet."""
    if stage == "ingest" and config.ingest is not None:
        return _ingest_mark(config.ingest)
    if stage == "train" and config.training is not None:
        from shards.manifest import newest_number, read_manifest
        from shards.order.blend import parse_blend

        sources = parse_blend(config.training.dataset)
        if any(newest_number(source.folder) is None for source in sources):
            return None
        return fingerprint([read_manifest(source.folder, source.manifest or config.training.manifest).fingerprint for source in sources])
    if stage == "eval":
        from training.checkpoint import read

        return fingerprint(read(_checkpoint(config, directory)).manifest["files"])
    return None


def _ingest_mark(section: "IngestConfig") -> str:
    """Of the lists, some of which grow, and of the dataset, which a purge or another round makes another one."""
    from ingest import inputs
    from shards.foreign import sha256_of
    from shards.manifest import newest_number, read_manifest

    dataset = read_manifest(section.output).fingerprint if newest_number(section.output) is not None else None
    return fingerprint([inputs.of(section), [sha256_of(path) for path in section.blocked], dataset])


def _refuse_busy_port(port: int) -> None:
    """Before the stages that draw for minutes what is then to be served."""
    from pipeline.app.picture_server import listening

    listening(port).close()


@contextlib.contextmanager
def _pictures_served(config: RunConfig) -> Iterator[None]:
    if config.pictures is None:
        yield
        return
    from pipeline.app.picture_server import serving

    with serving(Path(config.pictures.folder), config.pictures.port):
        yield


def _checkpoint(config: RunConfig, directory: RunDirectory) -> str:
    """What the evaluation looks at: what it is told, where training writes, or what the run directory knows of."""
    from training.checkpoint import folder_of

    assert config.eval is not None
    told = config.eval.checkpoint or (config.training.checkpoint_folder if config.training else None)
    return told or folder_of(str(directory.path)) or str(directory.path / "train" / "checkpoints")


def _validation(config: RunConfig, directory: RunDirectory) -> Callable[[str], dict[str, float]] | None:
    """The evaluation during training: retrieval on the validation split, when the run has an eval section."""
    if config.eval is None or config.training is None or config.training.evaluate_every_steps is None:
        return None
    from eval.suite import validate_checkpoint

    section = config.eval
    return lambda checkpoint: validate_checkpoint(section, checkpoint, directory.path)

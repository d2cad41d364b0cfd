"""The `albef` command. Everything heavy is imported inside the commands, so that help answers at once."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.core import logs, stopping
from pipeline.core.errors import AlbefError, DataError, FailedElsewhere
from pipeline.core.run_directory import rank

if TYPE_CHECKING:
    from pipeline.app.bench.row import BenchRow
    from pipeline.app.config import RunConfig

app = typer.Typer(
    help="ALBEF vision-language pre-training as a pipeline: URL lists in, verified shards, training, benchmark tables out.\n\n"
    "Start with: albef run pipeline/configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file with a section a stage; ours are in pipeline/configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[section.key=value]...", help="Settings that replace the file's.")]


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    figures: Annotated[str | None, typer.Option(metavar="FILE", help="Also write every stage's figures, with command and machine, as JSON.")] = None,
) -> None:
    """Walk all stages of CONFIG in order; finished ones are skipped, interrupted ones continue; ends with a report."""
    from pipeline.app.run import run as walk

    loaded = _loaded(config, overrides)
    report = walk(loaded)
    if figures is not None:
        from pipeline.app.figures import write_figures

        write_figures(Path(loaded.run.folder), figures, config.stem, _command())
    typer.echo(f"report: {report.resolve()}")


def ingest(
    config: ConfigPath,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the rows of the finished dataset again whose failure may pass (timeouts, 429, 5xx, ...); adds shards.")
    ] = False,
) -> None:
    """Download the pictures of the lists in CONFIG and write verified shards with an index and a manifest."""
    if not retry_failed:
        _stage("ingest", config, overrides)
        return
    from pipeline.app.run import retry_failed as again

    result = again(_loaded(config, overrides))
    typer.echo(f"{result['retried']} rows tried again, {result['added']} samples added" if result["retried"] else "nothing to retry")


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(help="Ranks on this machine; more than one starts the deepspeed launcher.", min=1)] = 1,
) -> None:
    """Pre-train as CONFIG says: ITC + ITM + MLM with a momentum teacher. Stops and resumes exactly."""
    if processes > 1:
        from pipeline.app.launch import launch_ranks

        raise typer.Exit(launch_ranks(processes, ["train", str(config), *(overrides or [])]))
    _stage("train", config, overrides)


@app.command("eval")
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run the benchmarks of CONFIG on a checkpoint and write the tables."""
    _stage("eval", config, overrides)


@app.command()
def report(config: ConfigPath, overrides: Overrides = None) -> None:
    """Write the HTML report of a run again."""
    from pipeline.app.report import write_report

    folder = Path(_loaded(config, overrides).run.folder)
    if not (folder / "stages").exists():
        raise DataError(f"{folder}: no stage of this run has finished; start it with: albef run {config}")
    typer.echo(f"report: {write_report(folder).resolve()}")


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write the world to.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of the world, e.g. train=2000 seed=7.")] = None,
) -> None:
    """Draw the embedded world: pictures, captions, lists and benchmark files in their real formats. Needs no download."""
    from pipeline.app.scenes.config import ScenesConfig
    from pipeline.app.scenes.write import write_world
    from pipeline.core.config import from_overrides

    logs.configure()
    write_world(from_overrides(ScenesConfig, overrides or []), out)
    typer.echo(f"world: {out.resolve()}")


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="table1: the paper's Table 1, a part of the method added at a time; itm-start: which settings get ITM going.")
    ],
    config: ConfigPath,
    overrides: Overrides = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds of each variant; without it as many as the study has.", min=1)] = None,
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Variants to run, and what they are compared with; without it all.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs side by side, a thread each.", min=1)] = 2,
    docs: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where the page, its pictures and benchmarks/<name>.json go; without it the run's folder.")
    ] = None,
) -> None:
    """Carry out an experiment of many runs on CONFIG; finished runs are skipped, interrupted ones continue."""
    from pipeline.app.studies import STUDIES
    from pipeline.app.studies.study import Choice, run
    from pipeline.core.errors import ConfigError

    if name not in STUDIES:
        raise ConfigError(f"study {name!r} is unknown; there are {', '.join(STUDIES)}")
    logs.configure()
    choice = Choice(tuple(overrides or ()), seeds, _listed(only) if only else None, jobs, docs)
    typer.echo(f"page: {run(STUDIES[name], config, choice, _command())}")


inspect_app = typer.Typer(help="See what a checkpoint has learned.", no_args_is_help=True)


@inspect_app.callback()
def inspect() -> None:
    """See what a checkpoint has learned."""


@inspect_app.command("pseudo-targets")
def inspect_pseudo_targets(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="A checkpoint, a folder of checkpoints (its newest), or a run directory.")],
    dataset: Annotated[str, typer.Option(metavar="FOLDER", help="Dataset the samples are from: a folder, or s3://bucket/folder.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="HTML file to write.")],
    samples: Annotated[str | None, typer.Option(metavar="KEY,KEY", help="Samples to show; without it some are drawn.")] = None,
    count: Annotated[int, typer.Option(help="Samples to draw.", min=1, max=1000)] = 8,
    seed: Annotated[int, typer.Option(help="Of the samples and the pool drawn.", min=0)] = 0,
    words: Annotated[str | None, typer.Option(metavar="WORD,WORD", help="Hide these words only; without it every word but the, of, on, ...")] = None,
    pool: Annotated[int, typer.Option(help="Captions of the dataset that ITC chooses from.", min=5)] = 1000,
) -> None:
    """Write the teacher's top-5 words (MLM) and top-5 texts (ITC) for some samples, with their pictures, as one HTML file."""
    from pipeline.app.pseudo_targets import Choice, write_pseudo_targets

    logs.configure()
    choice = Choice(_listed(samples), count, seed, _listed(words), pool)
    typer.echo(f"pseudo-targets: {write_pseudo_targets(checkpoint, dataset, choice, out)}")


config_app = typer.Typer(help="The configuration's reference.", no_args_is_help=True)


@config_app.command("reference")
def config_reference() -> None:
    """Print every key with its default and what it means."""
    from pipeline.app.config import RunConfig
    from pipeline.core.config import reference

    for key, default, description in reference(RunConfig):
        typer.echo(f"{key} = {default}\n    {description}")


bench_app = typer.Typer(help="Our numbers beside the peers', measured in one run.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Our numbers beside the peers', measured in one run."""


@bench_app.command("ingest")
def bench_ingest(
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the rows with command, commit and machine.")] = None,
    cases: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="What to measure; default: everything.")] = None,
    rounds: Annotated[int, typer.Option(help="Ours and the peer in turn; the figures are medians.", min=1)] = 3,
    pictures: Annotated[int, typer.Option(help="URLs to fetch, and at least 10.", min=10)] = 10_000,
    rows: Annotated[int, typer.Option(help="Rows of the generated lists of pairs-14m.", min=28)] = 14_000_000,
    work: Annotated[Path, typer.Option(metavar="FOLDER", help="Scratch, which keeps the pictures for the next time.")] = Path("runs/bench"),
) -> None:
    """Fetch, pair table and pictures beside img2dataset and pandas. Takes long; its progress is on stderr."""
    from pipeline.app.bench import ingest as benchmark

    logs.configure()
    names = _listed(cases) if cases is not None else list(benchmark.CASES)
    _show_rows("ingest", benchmark.run(names, benchmark.Scale(pictures, rows, rounds, work)), json)


@bench_app.command("shards")
def bench_shards(
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the rows with command, commit and machine.")] = None,
    cases: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="What to measure; default: everything.")] = None,
    rounds: Annotated[int, typer.Option(help="Ours and the peer in turn; the figures are medians.", min=1)] = 3,
    pictures: Annotated[int, typer.Option(help="Small pictures a round; a quarter as many large ones.", min=128)] = 2_000,
    work: Annotated[Path, typer.Option(metavar="FOLDER", help="Scratch, which keeps the pictures for the next time.")] = Path("runs/bench"),
) -> None:
    """Tars, decoding, batches, S3, resuming and scaling beside webdataset, Pillow and torchvision. Its progress is on stderr."""
    from pipeline.app.bench import shards as benchmark

    logs.configure()
    names = _listed(cases) if cases is not None else list(benchmark.CASES)
    _show_rows("shards", benchmark.run(names, benchmark.Scale(pictures, rounds, work)), json)


@bench_app.command("shards-simulation")
def bench_shards_simulation(
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the rows with command, commit and machine.")] = None,
    cases: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="What to simulate; default: everything.")] = None,
    nodes: Annotated[int, typer.Option(help="Nodes simulated where not all are; they know nothing of one another.", min=1)] = 4,
    hours: Annotated[float, typer.Option(help="Length of the day.", min=0.01)] = 24,
    step_s: Annotated[float, typer.Option(help="Seconds a step takes.", min=0.001)] = 1.0,
) -> None:
    """A day of 64 nodes reading 14M samples, order and node cache as they are, bytes and time made up: requests, amplification, balance, memory."""
    from pipeline.app.bench import simulation

    logs.configure()
    names = _listed(cases) if cases is not None else list(simulation.CASES)
    _show_rows("shards-simulation", simulation.run(names, simulation.Scale(nodes, hours, step_s)), json)


@bench_app.command("train")
def bench_train(
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the rows with command, commit and machine.")] = None,
    cases: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="What to measure; default: everything this machine can run, but engine.")] = None,
    rounds: Annotated[int, typer.Option(help="The fused and the plain step in turn; the figures are medians.", min=1)] = 3,
) -> None:
    """The fused step beside the original's passes: pairs per second, memory, useful FLOPs; on a GPU also MFU. Its progress is on stderr."""
    from pipeline.app.bench import train as benchmark

    logs.configure()
    names = _listed(cases) if cases is not None else benchmark.default_cases()
    _show_rows("train", benchmark.run(names, benchmark.Scale(rounds)), json)


def _show_rows(name: str, rows: "list[BenchRow]", json: str | None) -> None:
    from pipeline.app.bench.row import write_rows

    for row in rows:
        typer.echo(row)
    if json is not None:
        write_rows(json, name, _command(), rows)


def _listed(names: str | None) -> tuple[str, ...]:
    """`a, b` -> (`a`, `b`)."""
    return tuple(name.strip() for name in (names or "").split(",") if name.strip())


def _command() -> str:
    """As typed, for the figures it made; paths below the working directory as from there, since another machine has another one."""
    return " ".join(["albef", *sys.argv[1:]]).replace(f"{Path.cwd()}/", "")


def _loaded(config: Path, overrides: list[str] | None) -> "RunConfig":
    from pipeline.app.config import RunConfig
    from pipeline.core.config import load

    loaded = load(RunConfig, config, overrides or [])
    logs.configure(Path(loaded.run.folder), rank=rank())
    return loaded


def _stage(stage: str, config: Path, overrides: list[str] | None) -> Any:
    from pipeline.app.run import run_stage

    return run_stage(stage, _loaded(config, overrides))


def _add_rooms() -> None:
    from ingest.cli import app as ingest_app
    from shards.cli import app as shards_app
    from training.cli import app as checkpoint_app

    app.add_typer(bench_app, name="bench")
    ingest_app.command("CONFIG")(ingest)
    app.add_typer(
        ingest_app,
        name="ingest",
        help="Download pictures and shard them: albef ingest CONFIG [section.key=value]... [--retry-failed]; and see to what is there.",
    )
    app.add_typer(inspect_app, name="inspect")
    app.add_typer(config_app, name="config")
    app.add_typer(shards_app, name="shards", help="Tools for any WebDataset folder: index, verify, stats, reshard.")
    app.add_typer(checkpoint_app, name="checkpoint", help="Weights in and out: published ALBEF files, timm, Hugging Face BERT, safetensors.")


POLLING = {"run", "scenes", "ingest", "train", "eval", "study"}  # commands that look for signals between units of work; others end at once


def main() -> None:
    """Entry point: our errors become one line and their exit code, anything else is a bug and keeps its traceback."""
    polling = bool(sys.argv[1:2]) and sys.argv[1] in POLLING
    if polling:
        stopping.install_handlers()  # before torch is imported: an early signal would kill the process otherwise
    _add_rooms()
    try:
        sys.exit(exit_code_of(app))
    finally:  # typer ends a command that succeeded by SystemExit
        if polling:
            stopping.keep_exit_code()


def exit_code_of(command: Callable[[], Any]) -> int:
    """Run a command; 0, or the exit code of our error after printing its one line."""
    try:
        command()
    except AlbefError as error:
        if not isinstance(error, FailedElsewhere):
            typer.echo(f"albef: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    main()

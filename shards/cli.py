"""`albef shards index|verify|stats|reshard`: tools for any WebDataset folder, ours or a third party's."""

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shards.workers import Progress

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Folder = Annotated[str, typer.Argument(metavar="DATASET", help="Folder of the tars, on disk or s3://bucket/folder.")]
IndexRoot = Annotated[str | None, typer.Option(help="Where index and manifests lie when the dataset's own folder is read-only.")]
Number = Annotated[int | None, typer.Option("--manifest", help="Number of the manifest; the newest without it.")]
Workers = Annotated[int | None, typer.Option(help="Processes; without it one for each core, at most 16, and none for little.", min=1)]

LINES_SHOWN = 20
LARGEST_SHARD = 2**60  # bytes, to which offsets are added in 64 bits
LOG_EVERY_S = 20.0

log = logging.getLogger(__name__)


@app.command()
def index(
    folder: Folder,
    index_root: IndexRoot = None,
    workers: Workers = None,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged tars out, by name, in place of publishing nothing.")] = False,
    afresh: Annotated[bool, typer.Option("--afresh", help="Read tars again whose size and ETag, or time on disk, did not change.")] = False,
) -> None:
    """Make a dataset of a folder of tars: an index for each, then a manifest. The tars stay as they are; those indexed before are not read again."""
    from shards.foreign import DamagedTars, index_folder

    with _stoppable(), _progress() as progress:
        try:
            manifest = index_folder(folder, index_root, workers, skip_damaged, afresh, progress)
        except DamagedTars as error:
            for line in error.lines if len(error.lines) > 1 else ():
                typer.echo(line)
            raise
    typer.echo(f"manifest {manifest.number}: {len(manifest.shards)} shards, {manifest.num_samples} samples, {manifest.num_captions} captions")
    if left_out := {reason: count for reason, count in manifest.outcomes.items() if reason != "success" and count}:
        typer.echo("left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())))
    for line in manifest.config.get("damaged_tars", {}).values():
        typer.echo(f"left out: {line}")


@app.command()
def verify(
    folder: Folder,
    manifest: Number = None,
    index_root: IndexRoot = None,
    workers: Workers = None,
    quick: Annotated[bool, typer.Option("--quick", help="Look at sizes and indexes alone; reads no tar.")] = False,
) -> None:
    """Re-hash everything and list every difference from the manifest; exit code 2 when there is one."""
    from pipeline.core.errors import DataError
    from shards.manifest import read_manifest
    from shards.verify import verify as differences_of

    with _stoppable(keeps_work=False), _progress() as progress:
        pinned = read_manifest(index_root or folder, manifest)
        differences = differences_of(folder, pinned.number, index_root, workers, quick, progress)
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise DataError(f"{folder}: {len(differences)} differences from manifest {pinned.number}, listed above; copy those shards again")
    held = "have their sizes and indexes" if quick else "are as published"
    typer.echo(f"manifest {pinned.number}: all {len(pinned.shards)} shards and {pinned.num_samples} samples {held}")


@app.command()
def stats(
    folder: Folder,
    manifest: Number = None,
    index_root: IndexRoot = None,
    limit: Annotated[int, typer.Option(help="Samples to look at, evenly spread; 0 looks at all.", min=0)] = 2000,
    workers: Workers = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Also write everything as JSON; `-` prints that in place of the text.")] = None,
    contact_sheet: Annotated[str | None, typer.Option(metavar="FILE", help="Write a PNG of pictures, evenly spread, with their captions.")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of the contact sheet.", min=1, max=6000)] = 60,
) -> None:
    """Count samples, captions and bytes; summarise resolutions and caption lengths."""
    from json import dumps

    from pipeline.core import storage
    from shards.stats import gather, lines

    with _stoppable(keeps_work=False):
        with _progress() as progress:
            found = gather(folder, manifest, index_root, limit or None, workers, progress)
        as_json = dumps(found.as_json(), indent=1, ensure_ascii=False)
        if json == "-":
            typer.echo(as_json)
        else:
            for line in lines(found):
                typer.echo(line)
            if json is not None:
                storage.write_bytes(json, as_json.encode("utf-8", "replace"))
        if contact_sheet is not None:
            from shards.contact_sheet import write_contact_sheet

            write_contact_sheet(folder, contact_sheet, found.manifest, index_root, pictures)
            typer.echo(f"contact sheet: {contact_sheet}", err=json == "-")


@app.command()
def reshard(
    folders: Annotated[list[str], typer.Argument(metavar="DATASET", help="One dataset or several, on disk or s3://bucket/folder.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the new dataset: empty, or one that does not exist yet.")],
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Keep samples that meet it, such as: picture.short_side >= 256 and 'stock' not in caption.text. Repeatable."),
    ] = None,
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="Shuffle all samples globally; without it they stay in the order of the datasets.", min=0)
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(help="Samples of a new shard, at most.", min=1)] = 10_000,
    bytes_per_shard: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes of a new tar, at most: 500MB, 1GiB.")] = None,
    rename_keys: Annotated[bool, typer.Option("--rename-keys", help="Give every sample a new key, its shard's number and its row.")] = False,
    skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged samples out, by name, in place of stopping at the first.")] = False,
    spill: Annotated[str | None, typer.Option(metavar="FOLDER", help="Where a shuffle keeps a copy of the samples meanwhile; default: in OUT.")] = None,
    index_root: Annotated[list[str] | None, typer.Option(help="As for the other commands; once for each DATASET, in their order.")] = None,
    manifest: Annotated[list[int] | None, typer.Option(help="Number of the manifest; once for each DATASET, in their order.")] = None,
    workers: Workers = None,
) -> None:
    """Make a dataset of others: filter, shuffle globally, change the shards' size. Same input, same bytes; killed, the same command goes on.

    A condition is about the sample's json (width, exif.Make, json['clip-score']), or picture.width, .height, .short_side, .long_side, .aspect,
    .bytes, .format; caption.text, .count, .min_words, .max_words, .min_characters, .max_characters; sample.key, .source, .bytes.
    """
    from pipeline.core.errors import ConfigError
    from shards.reshard.request import Request
    from shards.reshard.reshard import pinned
    from shards.reshard.reshard import reshard as make

    for option, given in (("--index-root", index_root), ("--manifest", manifest)):
        if given and len(given) != len(folders):
            raise ConfigError(f"{option} is there {len(given)} times for {len(folders)} datasets; give it once for each, in their order")
    size = _size(bytes_per_shard) if bytes_per_shard is not None else None
    with _stoppable(), _progress() as progress:
        inputs = tuple(pinned(folder, index_root[place] if index_root else None, manifest[place] if manifest else None) for place, folder in enumerate(folders))
        made = make(Request(inputs, tuple(where or ()), shuffle, samples_per_shard, size, rename_keys), out, workers, spill, skip_damaged, progress)
    new = made.manifest
    typer.echo(f"manifest {new.number}: {len(new.shards)} shards, {new.num_samples} samples, {new.num_captions} captions, fingerprint {new.fingerprint}")
    if made.left_out:
        typer.echo(f"left out: {sum(made.left_out.values())} of {new.num_samples + sum(made.left_out.values())}")
        for reason, count in made.left_out.items():
            typer.echo(f"    {count:>8}  {reason}")
    for line in made.damaged[:LINES_SHOWN]:
        typer.echo(f"damaged: {line}")
    if len(made.damaged) > LINES_SHOWN:
        typer.echo(f"... and {len(made.damaged) - LINES_SHOWN} more; the manifest's config names all")


def _size(text: str) -> int:
    """`500MB`, `1GiB`, `1000000` in bytes."""
    from pipeline.core.errors import ConfigError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip())
    size = float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " ") if match else 0
    if not 1 <= size <= LARGEST_SHARD:
        raise ConfigError(f"--bytes-per-shard {text!r}: not a size of a shard; write it like 500MB or 1GiB")
    return int(size)


@contextlib.contextmanager
def _stoppable(keeps_work: bool = True) -> Iterator[None]:
    """A signal, a full disk and storage that does not answer end in exit code 4, from the first request on."""
    from pipeline.core import stopping
    from shards.workers import resumable

    stopping.install_handlers()
    with resumable(keeps_work):
        yield


@contextlib.contextmanager
def _progress() -> "Iterator[Progress]":
    """A live bar on the terminal with bytes and speed, elsewhere a line now and then; yields what to tell how far things are."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from pipeline.core import logs

    if not logging.getLogger().handlers:
        logs.configure()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=logs.console, transient=True, disable=not logs.console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}
        said = time.monotonic()

        def show(what: str, done: int, total: int) -> None:
            nonlocal said
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], total=total or None, completed=done)
            if bar.disable and time.monotonic() - said > LOG_EVERY_S:
                log.info("%s: %.1f of %.1f GB", what, done / 1e9, total / 1e9)
                said = time.monotonic()

        yield show

"""`albef shards index|verify|stats`: tools for any WebDataset folder, ours or a third party's."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Folder = Annotated[str, typer.Argument(metavar="DATASET", help="Folder of the tars, on disk or s3://bucket/folder.")]
IndexRoot = Annotated[str | None, typer.Option(help="Where index and manifests lie when the dataset's own folder is read-only.")]
Number = Annotated[int | None, typer.Option("--manifest", help="Number of the manifest; the newest without it.")]


@app.command()
def index(folder: Folder, index_root: IndexRoot = None) -> None:
    """Make a dataset of a folder of tars: an index for each, then a manifest. The tars stay as they are."""
    from shards.foreign import index_folder, tar_names

    with _progress("indexing", len(tar_names(folder)), "shards") as done:
        manifest = index_folder(folder, index_root, on_shard=done)
    typer.echo(f"manifest {manifest.number}: {len(manifest.shards)} shards, {manifest.num_samples} samples, {manifest.num_captions} captions")
    if left_out := {reason: count for reason, count in manifest.outcomes.items() if reason != "success" and count}:
        typer.echo("left out: " + ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())))


@app.command()
def verify(folder: Folder, manifest: Number = None, index_root: IndexRoot = None) -> None:
    """Re-hash everything and list every difference from the manifest; exit code 2 when there is one."""
    from pipeline.core.errors import DataError
    from shards.manifest import read_manifest
    from shards.verify import verify as differences_of

    pinned = read_manifest(index_root or folder, manifest)
    with _progress("verifying", len(pinned.shards), "shards") as done:
        differences = differences_of(folder, pinned.number, index_root, on_shard=done)
    for difference in differences:
        typer.echo(difference)
    if differences:
        raise DataError(f"{folder}: {len(differences)} differences from manifest {pinned.number}, listed above; copy those shards again")
    typer.echo(f"manifest {pinned.number}: all {len(pinned.shards)} shards and {pinned.num_samples} samples are as published")


@app.command()
def stats(
    folder: Folder,
    manifest: Number = None,
    index_root: IndexRoot = None,
    limit: Annotated[int, typer.Option(help="Samples to look at, evenly spread.", min=1)] = 2000,
    contact_sheet: Annotated[str | None, typer.Option(help="Write a PNG of 60 pictures here.")] = None,
) -> None:
    """Count samples, captions and bytes; summarise resolutions and caption lengths."""
    from shards.dataset import Dataset
    from shards.stats import gather, write_contact_sheet

    dataset = Dataset.open(folder, manifest, index_root)
    with _progress("reading", min(limit, dataset.num_samples), "samples") as done:
        found = gather(dataset, limit, on_sample=done)
    typer.echo(f"manifest {dataset.manifest.number} ({dataset.manifest.created_by}), fingerprint {dataset.fingerprint}")
    typer.echo(f"{found.samples} samples, {found.captions} captions, {found.shards} shards, {found.bytes / 1e6:.1f} MB")
    for title, counts in (("outcomes", found.outcomes), ("sources", found.sources), ("formats", found.formats)):
        typer.echo(f"{title}: " + (", ".join(f"{name or '(unnamed)'} {count}" for name, count in counts.items()) or "none"))
    typer.echo(f"looked at {found.looked_at} samples, {found.damaged} of them damaged")
    for title, summary in (("width", found.width), ("height", found.height), ("image bytes", found.image_bytes), ("caption words", found.caption_words)):
        if summary is not None:
            typer.echo(f"{title}: {summary}")
    if contact_sheet is not None:
        write_contact_sheet(dataset, contact_sheet)
        typer.echo(f"contact sheet: {contact_sheet}")


@contextlib.contextmanager
def _progress(what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """A live bar on the terminal; yields what to call after each unit."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.core.logs import console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)

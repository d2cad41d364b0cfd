"""Which checkpoints stay, and what dead runs left behind."""

from pipeline.core import storage
from training.checkpoint.layout import AGAIN, LATEST, MANIFEST, complete, folders, kind_of, latest_of, manifest_of, name_of, step_of


def remove_old(folder: str, keep: int, keep_every_steps: int | None = None) -> None:
    """Keep the newest `keep` checkpoints up to `latest`, and every one whose step is a multiple of `keep_every_steps`; one after `latest` goes.

    A removed one loses its manifest first, so it is never half a checkpoint.
    """
    assert keep > 0
    latest = latest_of(folder)
    if latest is None:  # nothing was published here yet, so nothing is old
        return
    whole = complete(folder)
    valid = [name for name in whole if name <= latest]
    kept = {*valid[-keep:], *(name for name in valid if keep_every_steps and step_of(name) % keep_every_steps == 0)}
    for name in set(whole) - kept:
        path = storage.join(folder, name)
        storage.remove(storage.join(path, MANIFEST))
        storage.remove_tree(path)


def forget_after(folder: str, step: int) -> None:
    """Make the checkpoint of `step` the newest again; later ones go with the next save."""
    storage.write_bytes(storage.join(folder, LATEST), name_of(step).encode())


def remove_remains(folder: str) -> None:
    """Remove what nobody will finish: folders without a manifest, files that no manifest lists, temporary files, unfinished uploads.

    Only for who alone writes there, before it writes.
    """
    storage.abort_uploads(folder)
    for file in filter(_temporary, storage.list_files(folder)):
        storage.remove(storage.join(folder, file))
    whole = complete(folder)
    for name in folders(folder):
        if name in whole:
            remove_unlisted(storage.join(folder, name))
        else:
            storage.remove_tree(storage.join(folder, name))


def remove_unlisted(path: str) -> None:
    """Remove from the folder of a checkpoint what a dead run, or the checkpoint that was replaced, left there; a user's own files stay."""
    manifest = manifest_of(path)
    if manifest is None:
        return
    listed = set(manifest["files"])
    for file in storage.list_files(path):
        if _temporary(file) or (file not in listed and kind_of(file)):
            storage.remove(storage.join(path, file))
    if not any(file.startswith(AGAIN) for file in listed):
        storage.remove_tree(storage.join(path, AGAIN))


def _temporary(file: str) -> bool:
    return file.startswith(".") and file.endswith(".tmp")

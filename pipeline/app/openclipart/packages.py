"""The two Debian packages: fetched by apt-get or put there by hand, and unpacked straight from the archive."""

import logging
import os
import posixpath
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import DataError, UserError

log = logging.getLogger(__name__)

APT_TIMEOUT_S = 900


def archive_of(folder: Path, package: str) -> Path:
    if not list(folder.glob(f"{package}_*.deb")):
        _download(folder, package)
    return max(folder.glob(f"{package}_*.deb"))


def _download(folder: Path, package: str) -> None:
    """apt-get checks what it fetches against the signed lists; a whole file only ever appears under its name."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log.info("openclipart: fetching the Debian package %s", package)
    complaint = _apt_get(partial, "download", package)
    if complaint is not None and os.geteuid() == 0:  # a fresh container has no package lists
        complaint = _apt_get(partial, "update") or _apt_get(partial, "download", package)
    if complaint is not None:
        where = f"or put {package}_*.deb from https://packages.debian.org/{package} into {folder}"
        raise UserError(f"openclipart: apt-get download {package} failed ({complaint}); run `sudo apt-get update` and check the network, {where}")
    for archive in partial.glob("*.deb"):
        archive.replace(folder / archive.name)
    partial.rmdir()


def _apt_get(folder: Path, *arguments: str) -> str | None:
    """None, or the last line of the complaint."""
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []  # else apt warns that its own user cannot write here
    try:
        subprocess.run(["apt-get", "-q", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    except FileNotFoundError:
        return "apt-get is not installed"
    except subprocess.TimeoutExpired:
        return f"no end after {APT_TIMEOUT_S} s"
    except subprocess.CalledProcessError as error:
        return _last_line(error.stderr)
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


@dataclass(frozen=True)
class Member:
    """A file of a package, or a link to another one; names are below usr/share/openclipart/png or .../svg."""

    name: str
    data: bytes = b""
    link: str | None = None


def members(archive: Path, kind: str) -> Iterator[Member]:
    """The files ending in .`kind`, in the package's order, straight from the archive: 360 MB that need not touch the disk."""
    try:
        unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise UserError("openclipart: dpkg-deb is not installed; this needs Debian or a system with its package tools") from None
    damaged = ""
    with unpacking:
        assert unpacking.stdout is not None
        assert unpacking.stderr is not None
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
                yield from members_of(tar, f"usr/share/openclipart/{kind}", f".{kind}")
        except tarfile.TarError as error:
            damaged = str(error)
        complaint = unpacking.stderr.read().decode(errors="replace")
    if damaged or unpacking.returncode != 0:
        raise DataError(f"{archive}: cannot be unpacked ({_last_line(complaint or damaged)}); delete it and run again")


def members_of(tar: tarfile.TarFile, top: str, suffix: str) -> Iterator[Member]:
    for entry in tar:
        path = posixpath.normpath(entry.name)  # so that no name leads out of the folder it is written to
        if not path.startswith(f"{top}/") or not path.endswith(suffix):
            continue
        name = posixpath.relpath(path, top)
        if entry.issym():
            yield Member(name, link=posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname)))
        elif entry.islnk():
            yield Member(name, link=posixpath.relpath(posixpath.normpath(entry.linkname), top))
        elif (content := tar.extractfile(entry)) is not None:
            yield Member(name, data=content.read())


def followed(links: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Every link with the name at the end of its chain; a circle ends where it began."""
    for name in sorted(links):
        target, seen = links[name], {name}
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        yield name, target

"""Ingest as a command of its own, and what can be seen of its processes from outside."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from ingest.config import IngestConfig

PROGRAM = (
    "import importlib, sys; from pathlib import Path; from ingest.config import IngestConfig; from pipeline.core import stopping;"
    "stopping.install_handlers();"
    "importlib.import_module(sys.argv[3]).run(IngestConfig.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
)


@contextlib.contextmanager
def running(config: IngestConfig, run_folder: Path, module: str = "ingest.ingest") -> Iterator["subprocess.Popen[bytes]"]:
    """Ingest in a process group of its own; nothing of it outlives the block."""
    settings = run_folder.with_suffix(".json")
    settings.write_text(config.model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(settings), str(run_folder), module], start_new_session=True, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        for found in processes(run_folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def processes(run_folder: Path) -> list[psutil.Process]:
    """Every living process of an ingest into this run folder: the command, the engine and its workers."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if str(run_folder) in " ".join(process.cmdline()):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return [process for process in found.values() if process.status() != psutil.STATUS_ZOMBIE]

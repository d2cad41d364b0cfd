"""Installation goes on where the compiled helpers cannot be built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def built(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """What `setup.py build_ext`, which `pip install -e .` calls, leaves in the folder."""
    command = [sys.executable, "setup.py", "build_ext", "--force", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False)
    return done, {path.name.partition(".")[0] for path in folder.rglob("*.so")}


def test_without_a_compiler_the_installation_goes_on_with_a_warning(tmp_path: Path) -> None:
    done, modules = built(tmp_path, CC=str(tmp_path / "no-compiler"))
    assert done.returncode == 0, done.stderr
    assert modules == set()
    assert "_jpeg" in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("gcc") is None and os.environ.get("CI") != "true", reason="no C compiler here")
def test_without_libjpeg_s_headers_resizing_is_compiled_alone(tmp_path: Path) -> None:
    hidden = tmp_path / "include"
    hidden.mkdir()
    (hidden / "jpeglib.h").write_text("#error no such header\n")
    done, modules = built(tmp_path, CFLAGS=f"-I{hidden}")
    assert done.returncode == 0, done.stderr
    assert modules == {"_resize"}

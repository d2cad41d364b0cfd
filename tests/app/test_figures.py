"""What a file of figures says of where they come from."""

import subprocess
from pathlib import Path

from pipeline.app.figures import commit


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_is_marked_by_changed_code_and_not_by_the_figures_being_written(tmp_path: Path) -> None:
    figures, code = tmp_path / "docs" / "benchmarks" / "train.json", tmp_path / "package" / "code.py"
    assert commit(tmp_path) == ""
    for file in (figures, code):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    name = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    figures.write_text("2")
    assert commit(code.parent) == name
    code.write_text("2")
    assert commit(code.parent) == f"{name}-dirty"

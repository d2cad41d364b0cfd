"""The files of docs/benchmarks in which campaigns keep what they counted."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.app.figures import commit, machine


def record_counts(path: Path, command: str, place: str, counts: Mapping[str, float], note: str) -> None:
    """Rows of one place in place of those that a campaign before left."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if not row["case"].startswith(f"{place}/")]
    rows += [
        {"case": f"{place}/{case}", "unit": "count", "ours": value, "peer": None, "peer_name": None, "ratio": None, "note": f"{note}; commit {commit()}"}
        for case, value in counts.items()
    ]
    figures = {"name": path.stem, "command": command, "commit": commit(), "machine": machine(), "rows": rows}
    path.write_text(json.dumps(figures, indent=1) + "\n")

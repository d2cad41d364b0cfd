"""One PNG that shows what the drawn world looks like: test pictures, each with a caption of its own."""

import json
import textwrap
from pathlib import Path

from pipeline.core import storage
from pipeline.core.errors import DataError


def write_contact_sheet(world: Path, path: Path, columns: int = 6, rows: int = 3, split: str = "test") -> Path:
    """Lay out the first pictures of a split of a written world, with captions, as a PNG."""
    from matplotlib import image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    annotations = world / "karpathy.json"
    if not annotations.exists():
        raise DataError(f"{annotations}: not found; draw the world first: albef scenes {world}")
    shown = [entry for entry in json.loads(annotations.read_text())["images"] if entry["split"] == split][: columns * rows]
    figure = Figure(figsize=(2.3 * columns, 2.9 * rows), dpi=100, facecolor="white", layout="constrained")
    for place, entry in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(image.imread(world / "pictures" / entry["filepath"] / entry["filename"]), interpolation="antialiased")
        axes.set_axis_off()
        caption = entry["sentences"][place % len(entry["sentences"])]["raw"]
        axes.set_title("\n".join(textwrap.wrap(caption, 30)), y=-0.03, va="top", fontsize=8.5, color="#333333")
    with storage.atomic_write(str(path)) as file:
        FigureCanvasAgg(figure).print_png(file)
    return path

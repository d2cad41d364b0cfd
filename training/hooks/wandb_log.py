"""A run's figures on Weights & Biases, under the names that metrics.jsonl has; one wandb run, however often training is started again."""

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.core import storage
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)
ID_FILE = "wandb-id"
FINISH_TIMEOUT_S = 60.0  # a scheduler that asked the run to stop does not wait for a slow upload; what is left is on disk for `wandb sync`
Mode = Literal["online", "offline"]


class WandbLog:
    """Of rank 0. The wandb run's id is kept in `folder`, which also takes what wandb writes by itself.

    Steps that wandb has from before a restart are not sent again. With mode offline nothing leaves the machine until `wandb sync`. Where wandb breaks
    later on, training goes on without it: it is a view of the run, not a part of it.

    Args:
        config: the resolved settings, as plain values.

    Raises:
        ConfigError: the package is not installed, or wandb refuses the run, e.g. without a login.
    """

    def __init__(self, folder: Path, *, project: str, name: str | None, mode: Mode, config: Mapping[str, Any]) -> None:
        try:
            import wandb  # an extra
        except ImportError as error:
            raise ConfigError("training.wandb: the package wandb is not installed; pip install 'albef[wandb]', or take training.wandb out") from error
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(  # figures and settings alone: no output, no code
            console="off", disable_git=True, save_code=False, silent=True, finish_timeout=FINISH_TIMEOUT_S
        )
        self.id = kept_id(folder)
        try:
            self._run: Any = wandb.init(
                project=project, name=name, id=self.id, resume="allow", mode=mode, dir=str(folder), config=dict(config), settings=settings
            )
        except wandb.Error as error:
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(f"training.wandb: {reason}; log in with `wandb login`, or set training.wandb.mode to offline") from error
        self._steps_sent = int(self._run.step) - 1
        log.info("wandb: run %s of project %s, %s", self.id, project, self._run.url if mode == "online" else f"offline in {self._run.dir}")

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Values after optimizer step `step`; further ones of the same step may follow."""
        if self._run is None or step <= self._steps_sent:
            return
        self._or_go_on_without(lambda: self._run.log(dict(values), step=step))

    def close(self) -> None:
        """Waits until everything is sent or written, but not for ever."""
        if self._run is not None:
            self._or_go_on_without(self._run.finish)

    def _or_go_on_without(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # wandb's own process may have died, of which half a dozen unrelated types tell
            log.warning("wandb failed (%s: %s); training goes on without it, and metrics.jsonl has every figure", type(error).__name__, error)
            self._run = None


def kept_id(folder: Path) -> str:
    """Of the folder's wandb run: drawn at the first start."""
    path = folder / ID_FILE
    if not path.exists():
        storage.write_bytes(str(path), secrets.token_hex(8).encode())
    return path.read_text().strip()

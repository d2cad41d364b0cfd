"""One run is one YAML file with a section a stage; a stage without a section does not run."""

from pydantic import Field, field_validator

from eval.config import EvalConfig
from ingest.config import IngestConfig
from pipeline.app.scenes.config import ScenesConfig
from pipeline.core.config import Section
from training.config import TrainingConfig


class PicturesConfig(Section):
    """A folder of pictures served over HTTP on loopback while the ingest stage runs, so that it meets a web."""

    folder: str = Field(description="folder to serve")
    port: int = Field(default=8765, ge=1024, le=65535, description="port on 127.0.0.1; the URLs in the pair list name it")


class RunSection(Section):
    """The run itself."""

    folder: str = Field(description="run directory on this machine: configuration, log, metrics, checkpoints, report")

    @field_validator("folder")
    @classmethod
    def _is_local(cls, folder: str) -> str:
        if "://" in folder:
            raise ValueError("the run directory is a local folder; datasets may be s3:// URLs")
        return folder


class WorldConfig(ScenesConfig):
    """The embedded world to draw before anything else."""

    folder: str = Field(description="folder the world is written to")


class OpenclipartConfig(Section):
    """Real pictures: the Debian packages openclipart-png and openclipart-svg."""

    folder: str = Field(description="folder the packages and the pair list are written to")


class RunConfig(Section):
    """Everything `albef run` needs, a section a stage."""

    run: RunSection = Field(description="the run directory")
    scenes: WorldConfig | None = Field(default=None, description="draw the embedded world")
    openclipart: OpenclipartConfig | None = Field(default=None, description="fetch real, public domain pictures")
    pictures: PicturesConfig | None = Field(default=None, description="serve a picture folder on loopback during ingest")
    ingest: IngestConfig | None = Field(default=None, description="download and shard")
    training: TrainingConfig | None = Field(default=None, description="pre-train")
    eval: EvalConfig | None = Field(default=None, description="benchmark")

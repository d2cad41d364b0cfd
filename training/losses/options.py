"""What the options of several losses are bound to, checked where a configuration is read."""

from typing import Annotated

from pydantic import Field

Weight = Annotated[float, Field(ge=0)]
OptimizerStep = Annotated[int, Field(ge=0)]

"""What the clients of model hubs raise, as one line."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.core.errors import DataError

T = TypeVar("T")


def from_hub(name: str, expected: str, load: Callable[[], T]) -> T:
    """Call `load`; whatever it raises becomes a DataError that says what `name` should have been."""
    try:
        return load()
    except Exception as error:  # the hub clients raise a dozen unrelated types for a wrong name, no network or no permission
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise DataError(f"{name}: cannot be loaded; expected {expected} ({type(error).__name__}: {reason})") from error

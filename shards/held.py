"""A bounded key of things that are dear to load, shared by the workers of a loader."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Held(Generic[K, T]):
    """`held(key)` loads what belongs to the key, or gives what it holds; beyond `count`, what was used longest ago is let go.

    Threads that want the same wait for one load; what fails to load is held by nobody and tried again by the next who asks.
    """

    def __init__(self, load: Callable[[K], T], count: int) -> None:
        self.count = count
        self._load = load
        self._held: OrderedDict[K, T] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[K, threading.Lock] = {}

    def __call__(self, key: K) -> T:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if key in self._held:
                    return self._held[key]
            loaded = self._load(key)
            with self._lock:
                self._held[key] = loaded
                self._loading.pop(key, None)
                while len(self._held) > self.count:
                    self._held.popitem(last=False)
            return loaded

    def __len__(self) -> int:
        return len(self._held)

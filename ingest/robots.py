"""robots.txt (RFC 9309): what a host lets this crawler ask for, remembered for a day."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from ingest.outcomes import Ended, Outcome

KEPT_S = 24 * 3600.0
KEPT_WITHOUT_ANSWER_S = 600.0
MAX_BYTES = 500 * 2**10  # what is beyond is not read
MEMORY_BYTES = 16 * 2**20  # of texts remembered; parsed rules take some ten times their text


@dataclass(frozen=True)
class Rules:
    """What one host's robots.txt says; without a parsed text all is allowed, with `refusal` nothing is."""

    parsed: Protego | None
    refusal: Ended | None
    size: int
    expires_at: float

    def check(self, url: URL, product: str) -> None:
        """Raises Ended when this URL may not be asked for."""
        if self.refusal is not None:
            raise Ended(self.refusal.outcome, self.refusal.detail, self.refusal.status)  # a new one: raised again and again it would gather tracebacks
        if self.parsed is not None and not self.parsed.can_fetch(str(url), product):
            raise Ended(Outcome.ROBOTS_TXT, f"{url.path} is disallowed for {product}")

    def crawl_delay_s(self, product: str) -> float:
        return float((self.parsed.crawl_delay(product) if self.parsed else None) or 0.0)


def from_text(text: bytes) -> Rules:
    return Rules(Protego.parse(text[:MAX_BYTES].decode("utf-8", "replace")), None, len(text), time.monotonic() + KEPT_S)


def from_failure(end: Ended) -> Rules:
    """After a 4xx or endless redirects all is allowed, after any other status nothing; a host that cannot be reached ends its pictures as it ended this."""
    if end.outcome is Outcome.TOO_MANY_REDIRECTS or 400 <= (end.status or 0) < 500:
        return Rules(None, None, 0, time.monotonic() + KEPT_S)
    outcome = end.outcome if end.status is None else Outcome.ROBOTS_TXT
    refusal = Ended(outcome, f"robots.txt: {end.detail or end.outcome}", end.status)
    return Rules(None, refusal, 0, time.monotonic() + KEPT_WITHOUT_ANSWER_S)


class Memory:
    """The rules of the hosts met last, by origin."""

    def __init__(self) -> None:
        self._rules: OrderedDict[str, Rules] = OrderedDict()
        self._bytes = 0

    def get(self, origin: str) -> Rules | None:
        rules = self._rules.get(origin)
        if rules is None or rules.expires_at < time.monotonic():
            return None
        self._rules.move_to_end(origin)
        return rules

    def keep(self, origin: str, rules: Rules) -> None:
        self._forget(origin)
        self._rules[origin] = rules
        self._bytes += _cost(rules)
        while self._bytes > MEMORY_BYTES:
            self._forget(next(iter(self._rules)))

    def _forget(self, origin: str) -> None:
        if (old := self._rules.pop(origin, None)) is not None:
            self._bytes -= _cost(old)


def _cost(rules: Rules) -> int:
    return rules.size + 1000  # of a short text the objects around it weigh more

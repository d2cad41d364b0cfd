"""Tell dead hosts from a dead network: when nothing answers any more, rows are not written down as failed, and ingest stops resumably."""

from typing import Any

from ingest.outcomes import Outcome
from pipeline.core.errors import DataError

HOSTS = 10  # that must be silent, or all of a shard that has fewer
NO_ANSWER = frozenset({Outcome.DNS_FAILED.value, Outcome.CONNECTION_FAILED.value, Outcome.TIMEOUT.value})

Ended = tuple[int, dict[str, Any], bytes]  # number of the row, its facts, its picture


class NetworkGone(DataError):
    """Nothing answered for a long row of rows."""


class OutageWatch:
    """Rows as they end go in, those that may be journalled come out; `rows` 0 lets everything through.

    Rows without an answer are held until some host gives one, or so many are held that it is an outage, or, if they are of a few hosts only, those.
    """

    def __init__(self, rows: int, hosts: int) -> None:
        """`hosts` are there in the shard."""
        self.rows, self.hosts = rows, min(HOSTS, hosts)
        self.held: list[Ended] = []
        self._silent: set[str] = set()

    def pass_on(self, host: str, ended: Ended) -> list[Ended]:
        """What is to be journalled now.

        Raises:
            NetworkGone: too many rows in a row, of too many hosts, had no answer.
        """
        facts = ended[1]
        if self.rows == 0 or facts["attempts"] == 0:  # nothing was asked, so it tells nothing of the network
            return [ended]
        if facts["outcome"] not in NO_ANSWER or facts["http_status"] is not None:
            return [*self.release(), ended]
        self.held.append(ended)
        self._silent.add(host)
        if len(self.held) < self.rows:
            return []
        if len(self._silent) < self.hosts:
            return self.release()
        hosts = f"{len(self._silent)} host{'s' if len(self._silent) > 1 else ''}"
        advice = "is the network down? If these hosts are gone for good, set ingest.fetch.outage_rows=0"
        raise NetworkGone(f"the last {len(self.held)} rows, of {hosts}, had no answer ({facts['outcome']}: {facts['detail']}); {advice}")

    def release(self) -> list[Ended]:
        """All that are held: somebody answered, or there are no more rows."""
        held, self.held = self.held, []
        self._silent.clear()
        return held

"""A network that is gone stops ingest resumably; hosts that are gone do not."""

import http.server
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ingest import ingest, published
from ingest.config import IngestConfig
from ingest.outage import HOSTS, NetworkGone, OutageWatch
from pipeline.core import storage
from pipeline.core.errors import Stopped


def ended(index: int, outcome: str, status: int | None = None, attempts: int = 1) -> tuple[int, dict[str, Any], bytes]:
    return index, {"outcome": outcome, "http_status": status, "attempts": attempts, "detail": ""}, b""


def feed(watch: OutageWatch, outcomes: list[str], hosts: int) -> list[int]:
    """The rows that may be journalled."""
    return [one[0] for index, outcome in enumerate(outcomes) for one in watch.pass_on(f"h{index % hosts}", ended(index, outcome))]


def test_rows_without_an_answer_are_held_until_somebody_answers() -> None:
    watch = OutageWatch(rows=20, hosts=100)
    assert feed(watch, ["dns_failed", "timeout", "connection_failed"], hosts=3) == []
    assert [one[0] for one in watch.pass_on("h", ended(3, "http_404", 404))] == [0, 1, 2, 3]
    assert [one[0] for one in watch.pass_on("h", ended(4, "timeout", 200))] == [4], "a body that stalls is an answer, too"
    feed(watch, ["dns_failed"] * 19, hosts=19)
    assert [one[0] for one in watch.pass_on("h", ended(99, "held_out", attempts=0))] == [99], "what was not asked for tells nothing"
    with pytest.raises(NetworkGone, match=r"the last 20 rows, of 20 hosts, had no answer \(timeout: \)"):
        watch.pass_on("other", ended(100, "timeout"))


def test_few_dead_hosts_among_many_are_no_outage_and_a_shard_of_one_host_can_have_one() -> None:
    assert feed(OutageWatch(20, 100), ["dns_failed"] * 65, hosts=HOSTS - 1) == list(range(60))
    with pytest.raises(NetworkGone, match="of 1 host,"):
        feed(OutageWatch(20, 1), ["dns_failed"] * 20, hosts=1)
    assert feed(OutageWatch(0, 1), ["dns_failed"] * 500, hosts=1) == list(range(500)), "0 switches it off"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def serve(tmp_path: Path) -> Any:
    """Start a server for /picture.jpg on a port; it ends with the test."""
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "picture.jpg")
    started: list[http.server.ThreadingHTTPServer] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = (tmp_path / "picture.jpg").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None: ...

    def start(port: int) -> None:
        started.append(http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_when_nothing_answers_ingest_stops_and_the_same_command_goes_on_without_a_loss(tmp_path: Path, free_port: int, serve: Callable[[int], None]) -> None:
    rows = [{"url": f"http://127.0.0.1:{free_port}/{n}.jpg", "caption": "x"} for n in range(40)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": str(tmp_path / "set"), "samples_per_shard": 20}
    values |= {"fetch": {"allow_loopback": True, "timeout_s": 5, "attempts": 1, "outage_rows": 10}, "engine": {"processes": 1, "concurrency": 4}}
    config = IngestConfig.model_validate(values)
    with pytest.raises(Stopped, match=r"the last 1[0-9] rows, of 1 host, had no answer \(connection_failed: .*run the same command again"):
        ingest.run(config, tmp_path / "run")
    assert not published.names(config.output)
    serve(free_port)
    assert ingest.run(config, tmp_path / "run")["outcomes"] == {"success": 40}
    assert storage.exists(f"{config.output}/MANIFEST")

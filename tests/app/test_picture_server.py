"""The demo's web on loopback: good pictures, the four faults, and a process that never outlives its parent."""

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from pipeline.app import picture_server
from pipeline.app.picture_server import serving
from pipeline.core.errors import UserError

PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("web")
    (folder / "pictures" / "00").mkdir(parents=True)
    (folder / "pictures" / "00" / "a.jpg").write_bytes(PICTURE)
    (folder / "pictures" / "00" / "b c.png").write_bytes(b"\x89PNG")
    (folder / "secret.txt").write_text("not for the web")
    (folder / "pictures" / "way_out.txt").symlink_to(folder / "secret.txt")
    with serving(folder, port=0) as base_url:
        yield base_url


def connected(base_url: str) -> "contextlib.closing[http.client.HTTPConnection]":
    return contextlib.closing(http.client.HTTPConnection(base_url.removeprefix("http://"), timeout=10))


def status_of(base_url: str, raw_path: str) -> int:
    with connected(base_url) as connection:
        connection.request("GET", raw_path)
        return connection.getresponse().status


def test_a_picture_arrives_whole_with_its_content_type(web: str) -> None:
    with urllib.request.urlopen(f"{web}/pictures/00/a.jpg") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.read() == PICTURE
    with urllib.request.urlopen(f"{web}/pictures/00/b%20c.png") as answer:
        assert answer.headers["Content-Type"] == "image/png"


def test_missing_pictures_folders_and_the_404_corner_are_404(web: str) -> None:
    for path in ("/pictures/00/none.jpg", "/pictures/00", "/pictures/", "/broken/404/00/a.jpg", "/broken/truncated/none.jpg", "/elsewhere"):
        assert status_of(web, path) == 404, path


@pytest.mark.parametrize("corner", ["pictures", "broken/truncated", "broken/slow"])
@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "..%2fsecret.txt",
        "%2e%2e/secret.txt",
        "00/../../secret.txt",
        "/etc/passwd",
        "%2fetc/passwd",
        "way_out.txt",
        "a%00.jpg",
        "..\\secret.txt",
    ],
)
def test_no_path_leads_out_of_the_folder(web: str, corner: str, path: str) -> None:
    assert status_of(web, f"/{corner}/{path}") in (400, 404)


def test_a_truncated_picture_announces_all_of_it_and_sends_half(web: str) -> None:
    with connected(web) as connection:
        connection.request("GET", "/broken/truncated/00/a.jpg")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(PICTURE))
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
        assert cut.value.partial == PICTURE[: len(PICTURE) // 2]


def test_a_page_can_claim_to_be_a_picture(web: str) -> None:
    with urllib.request.urlopen(f"{web}/broken/html/00/a.jpg") as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert answer.read().startswith(b"<!DOCTYPE html>")


def test_a_slow_picture_drips_and_holds_up_nobody_else(web: str) -> None:
    with connected(web) as connection:
        connection.request("GET", "/broken/slow/00/a.jpg")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.headers["Content-Length"] is None
        started = time.monotonic()
        assert status_of(web, "/pictures/00/a.jpg") == 200
        assert answer.read(2) == PICTURE[:2]
        assert time.monotonic() - started > picture_server.DRIP_INTERVAL_S / 2
    assert status_of(web, "/pictures/00/a.jpg") == 200  # also after the client has hung up


def test_only_loopback_is_bound(web: str) -> None:
    port = int(web.rsplit(":", 1)[1])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_a_busy_port_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_server, "BUSY_PORT_WAIT_S", 0.2)
    (tmp_path / "pictures").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^pictures\.port is {port}: [^\n]+$"), serving(tmp_path, port):
            pass


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folder pictures/"), serving(tmp_path, 0):
        pass


def test_the_server_ends_with_the_block(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with serving(tmp_path, 0) as base_url, urllib.request.urlopen(base_url) as answer:
        pid = int(answer.read())
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(base_url)


def test_the_server_dies_with_a_parent_killed_by_kill_9_and_the_next_run_gets_the_same_port(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(PICTURE)
    program = (
        "import sys, time, pathlib\n"
        "from pipeline.app.picture_server import serving\n"
        "with serving(pathlib.Path(sys.argv[1]), 0) as base_url:\n"
        "    sys.stdout.write(base_url + '\\n'); sys.stdout.flush(); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        base_url = parent.stdout.readline().strip()
        with urllib.request.urlopen(base_url) as answer:
            server = int(answer.read())
        os.kill(parent.pid, signal.SIGKILL)
    with serving(tmp_path, int(base_url.rsplit(":", 1)[1])) as again, urllib.request.urlopen(f"{again}/pictures/a.jpg") as answer:
        assert again == base_url
        assert answer.read() == PICTURE
    state = Path(f"/proc/{server}/stat")
    assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z"  # an orphan nobody reaped is dead too


def test_a_server_whose_parent_is_already_gone_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.app.picture_server", str(tmp_path), "--port", "0", "--parent", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "is gone" in ended.stderr


def test_with_a_certificate_it_speaks_https(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"picture")
    authority, server, client = trustme.CA(), tmp_path / "server.pem", ssl.create_default_context()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
    authority.configure_trust(client)
    with serving(tmp_path, port=0, certificate=server) as base:
        assert base.startswith("https://127.0.0.1:")
        with urllib.request.urlopen(f"{base}/pictures/a.jpg", context=client) as response:
            assert response.read() == b"picture"

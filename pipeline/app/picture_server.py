"""A small web on loopback for the demo: the pictures of a folder, and beside them the faults a crawler meets.

/pictures/PATH           FOLDER/pictures/PATH as it is, with the content type of its name
/broken/404/PATH         404, always
/broken/truncated/PATH   announces the whole picture and closes the connection halfway
/broken/html/PATH        an HTML page that claims to be a JPEG
/broken/slow/PATH        the picture again and again, a byte a second: never idle for long, never done

It runs as its own process, so that it takes no time from the crawler's event loop: `python -m pipeline.app.picture_server FOLDER --port P`.
"""

import argparse
import asyncio
import contextlib
import ctypes
import errno
import http.client
import logging
import mimetypes
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from aiohttp import web

from pipeline.core.errors import AlbefError, UserError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
BUSY_PORT_WAIT_S = 5.0  # the server of a run that was just killed needs a moment to die and free the port
START_WAIT_S = 60.0
DRIP_INTERVAL_S = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h

HTML_PAGE = b"<!DOCTYPE html><html><head><title>Sorry</title></head><body><p>This picture has moved.</p></body></html>\n"

FOLDER = web.AppKey("folder", Path)


@contextlib.contextmanager
def serving(folder: Path, port: int, certificate: Path | None = None) -> Iterator[str]:
    """Serve `folder`/pictures in a child process and yield the base URL (`http://127.0.0.1:8765`); port 0 takes a free one.

    With a `certificate`, a PEM file that holds its private key too, it speaks https.

    The child ends with the block, and with this process however it dies: enter it from a thread that lives as long as the process.

    Raises:
        UserError: the port is in use by somebody else, or the folder has no pictures.
    """
    if not (folder / "pictures").is_dir():
        raise UserError(f"{folder}: has no folder pictures/ to serve; make the pictures first")
    with listening(port) as listener:  # bound here, so a busy port is known at once and early requests wait in the backlog
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "pipeline.app.picture_server", str(folder.absolute())]
        command += ["--descriptor", str(listener.fileno()), "--parent", str(os.getpid())]
        command += ["--certificate", str(certificate)] if certificate is not None else []
        # Its own session: a Ctrl-C in the terminal stops the run gracefully, and until then the pictures must keep coming.
        child = subprocess.Popen(command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_until_it_answers(child, port, tls=certificate is not None)
        yield f"{'http' if certificate is None else 'https'}://{HOST}:{port}"
    finally:
        _end(child)


def listening(port: int) -> socket.socket:
    """A listening loopback socket; waits a little for a port that is being given up."""
    deadline = time.monotonic() + BUSY_PORT_WAIT_S
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            if error.errno == errno.EACCES:
                raise UserError(f"pictures.port is {port}: only the system may use it; choose one above 1023") from error
            if error.errno != errno.EADDRINUSE:
                raise
            if time.monotonic() > deadline:
                raise UserError(f"pictures.port is {port}: another program uses this port; end it or choose another port") from error
        time.sleep(0.1)


def _wait_until_it_answers(child: "subprocess.Popen[bytes]", port: int, tls: bool) -> None:
    deadline = time.monotonic() + START_WAIT_S
    while child.poll() is None and time.monotonic() < deadline:
        timeout_s = max(0.1, deadline - time.monotonic())
        anyone = ssl._create_unverified_context() if tls else None  # whether it is ours, its process id says
        connection = http.client.HTTPSConnection(HOST, port, timeout=timeout_s, context=anyone) if tls else http.client.HTTPConnection(HOST, port, timeout_s)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            if connection.getresponse().read() == str(child.pid).encode():
                return
        time.sleep(0.05)
    state = f"ended with code {child.returncode}" if child.returncode is not None else f"did not answer within {START_WAIT_S:.0f} s"
    raise AlbefError(f"the picture server on port {port} {state}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def application(folder: Path) -> web.Application:
    """The web application over `folder`/pictures."""
    app = web.Application()
    app[FOLDER] = (folder / "pictures").resolve()
    app.router.add_get("/", _pid)
    app.router.add_get("/pictures/{path:.+}", _picture)
    app.router.add_get("/broken/truncated/{path:.+}", _truncated)
    app.router.add_get("/broken/html/{path:.+}", _html)
    app.router.add_get("/broken/slow/{path:.+}", _slow)
    return app  # /broken/404/ needs no route: what is not listed here is a 404


async def _pid(_request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


async def _picture(request: web.Request) -> web.Response:
    data, content_type = _read(request)
    return web.Response(body=data, content_type=content_type)


async def _truncated(request: web.Request) -> web.StreamResponse:
    data, content_type = _read(request)
    response = web.StreamResponse(headers={"Content-Type": content_type, "Content-Length": str(len(data))})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()  # after what is buffered has been sent
    return response


async def _html(_request: web.Request) -> web.Response:
    return web.Response(body=HTML_PAGE, content_type="image/jpeg")


async def _slow(request: web.Request) -> web.StreamResponse:
    data, content_type = _read(request)
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the client has had enough
        for byte in cycle(data):
            await response.write(bytes([byte]))
            await asyncio.sleep(DRIP_INTERVAL_S)
    return response


def _read(request: web.Request) -> tuple[bytes, str]:
    """The picture's bytes and content type; 404 for what is not a file below the folder.

    Read in one go on the event loop: the files are small and in the page cache, where a thread or sendfile costs more than the read.
    """
    folder = request.app[FOLDER]
    try:
        path = (folder / request.match_info["path"]).resolve(strict=True)  # strict also against links that lead out
        if not path.is_relative_to(folder):
            raise web.HTTPNotFound
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise web.HTTPNotFound from None
    return data, mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, even by kill -9."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above took effect
        sys.exit("the process that started the picture server is gone")


async def _serve(folder: Path, listener: socket.socket, certificate: Path | None) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    runner = web.AppRunner(application(folder), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, ssl_context=tls).start()
    await asyncio.Event().wait()


def main() -> None:
    """The command line of the server's own process."""
    parser = argparse.ArgumentParser(description="Serve FOLDER/pictures on 127.0.0.1, with the faults of a real web beside it.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    door = parser.add_mutually_exclusive_group(required=True)
    door.add_argument("--port", type=int, help="the loopback port to listen on")
    door.add_argument("--descriptor", type=int, help="an inherited listening socket instead (used by albef itself)")
    parser.add_argument("--parent", type=int, help="process id to die with (used by albef itself)")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="speak https with this certificate: a PEM file that holds its private key too")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        _die_with(arguments.parent)
    try:
        listener = listening(arguments.port) if arguments.descriptor is None else socket.socket(fileno=arguments.descriptor)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.folder, listener, arguments.certificate))


if __name__ == "__main__":
    main()

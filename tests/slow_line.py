"""A slow line to a server on loopback: a proxy that passes on bytes later, or holds them back.

with SlowLine(server.port, seconds=0.08) as line:
    RequestsTransport(f"https://127.0.0.1:{line.port}/v1")
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.loopback import Loopback


class SlowLine(Loopback):
    """Pass on the bytes of each connection ``seconds`` later. While ``is_open`` isn't set, pass on nothing."""

    def __init__(self, target: int, *, seconds: float = 0.0, host: str = "127.0.0.1") -> None:
        super().__init__(lambda exchange: None, host=host)
        self.target = target
        self.seconds = seconds
        self.is_open = threading.Event()
        self.is_open.set()

    def __exit__(self, *exc_info: object) -> None:
        self.is_open.set()
        super().__exit__(*exc_info)

    def _serve(self, near: socket.socket) -> None:
        self._open.add(near)
        self.is_open.wait()
        with near, socket.create_connection(("127.0.0.1", self.target)) as far:
            self._open.add(far)
            back = threading.Thread(target=self._pass_on, args=(far, near))
            back.start()
            self._pass_on(near, far)
            back.join()
            self._open -= {near, far}

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                time.sleep(self.seconds)
                self.is_open.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

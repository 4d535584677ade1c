"""MoEngage's end of the wire: one process on loopback that behaves as the URL it is asked under says.

``/at-once/v1``, ``/delay-0.040/v1``, ``/close/v1`` (a connection a request), ``/hang/v1``,
``/drip/v1``, ``/status-500/v1``, ``/status-429/v1``; anything after the first part of the path names
a caller of its own in ``/stats``. ``/sink`` takes whatever a peer reports.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

KEYS = ("hero-banner", "promo-strip", "loyalty-card")
"""The experiences of the measured pages; the upstream knows every key."""

DRIP_SECONDS = 0.2

READ_EVERY = 50
"""Of so many calls with events, one is read whole; parsing each would take longer than sending it."""


def build_experience(key: str) -> dict[str, Any]:
    """Return an experience as the wire has it, about 900 bytes (contract §2)."""
    texts = {
        "Title": f"Title of {key}",
        "Text": "Everything for the first cold days, chosen for you. " * 6,
        "CtaLabel": "To the sale",
        "Image": f"https://images.example.com/{key}/wide.jpg",
    }
    return {
        "payload": {name: {"value": text, "data_type": "string"} for name, text in texts.items()},
        "experience_context": {
            "cid": f"65ea-{key}_F_T_WP_AB_2_P_0_AU_42D",
            "experience": f"Experience {key}",
            "moe_locale_id": "0",
            "moe_variation_id": "2",
            "audience_name": "All of them",
            "audience_id": "42D",
            "type": "Web Personalization",
            "experience_type": "API based Experience",
        },
    }


def count_actions(body: bytes, *, whole: bool) -> int:
    """Return the number of events in a body, by their UUIDs; one read ``whole`` has to be what it looks like."""
    number = body.count(b'"moe_event_uuid":')
    if whole and number != sum(len(element["actions"]) for element in json.loads(body)["elements"]):
        raise ValueError("events that cannot be counted by their UUIDs")
    return number


class Books:
    """What was asked, by the prefix it was asked under."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.bodies: dict[str, str] = {}

    def of(self, prefix: str) -> dict[str, int]:
        """Return the counts of one caller."""
        names = ("fetches", "keys", "events", "actions", "metadata", "in_flight", "most_in_flight")
        return self.counts.setdefault(prefix, dict.fromkeys(names, 0))

    def answer(self, prefix: str, path: str, body: bytes) -> bytes:
        """Count a call and return the body of its healthy answer."""
        counts = self.of(prefix)
        if path == "/experiences/fetch":
            keys = json.loads(body).get("experience_key", ())
            counts["fetches"] += 1
            counts["keys"] += len(keys)
            return f'{{"experiences":{{{",".join([self._get_text(key) for key in keys])}}}}}'.encode()
        if path == "/experiences/events":
            counts["actions"] += count_actions(body, whole=counts["events"] % READ_EVERY == 0)
            counts["events"] += 1
            return b'{"status":"success","message":"Your request has been accepted.","req_id":"SKuSLFnX"}'
        counts["metadata"] += 1
        return b'{"metadata":{"count":0,"experiences":[]}}'

    def _get_text(self, key: str) -> str:
        if key not in self.bodies:
            self.bodies[key] = f"{json.dumps(key)}:{json.dumps(build_experience(key))}"
        return self.bodies[key]


class Connection(asyncio.Protocol):
    """One connection; no pipelining, which no client here does."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.received = b""
        self.timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Stop dripping to who has gone."""
        for timer in self.timers:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer when the request is whole."""
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        place = lowered.find(b"content-length:")
        length = int(lowered[place + 15 :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(rest) >= length:
            self.received = b""
            self._answer(head.split(b" ", 2)[1].decode("latin-1"), rest[:length])

    def _answer(self, target: str, body: bytes) -> None:
        path = target.partition("?")[0]
        if path.startswith("/sink"):
            self._write(b"{}")
        elif path == "/stats":
            self._write(json.dumps(self.books.counts).encode())
        else:
            prefix, _, rest = path.partition("/v1")
            self._behave(prefix, prefix.split("/")[1], self.books.answer(prefix, rest, body))

    def _behave(self, prefix: str, behaviour: str, answer: bytes) -> None:
        name, _, detail = behaviour.partition("-")
        if name == "delay":
            counts = self.books.of(prefix)
            counts["in_flight"] += 1
            counts["most_in_flight"] = max(counts["in_flight"], counts["most_in_flight"])
            asyncio.get_running_loop().call_later(float(detail), self._answer_late, counts, answer)
        elif name == "status":
            self._write(b'{"title":"Request Error","description":""}', f"{detail} Fault")
        elif name == "drip":
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            self._drip()
        elif name == "close":
            self._write(answer, more="Connection: close\r\n")
            self.transport.close()
        elif name != "hang":
            self._write(answer)

    def _answer_late(self, counts: dict[str, int], answer: bytes) -> None:
        counts["in_flight"] -= 1
        self._write(answer)

    def _drip(self) -> None:
        self.transport.write(b" ")
        self.timers = [asyncio.get_running_loop().call_later(DRIP_SECONDS, self._drip)]

    def _write(self, body: bytes, status: str = "200 OK", *, more: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        self.transport.write(head.encode() + body)


async def _serve(certificate: str) -> None:
    loop = asyncio.get_running_loop()
    books = Books()
    servers = [await loop.create_server(lambda: Connection(books), "127.0.0.1", 0, backlog=1024)]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        servers.append(await loop.create_server(lambda: Connection(books), "127.0.0.1", 0, ssl=context, backlog=1024))
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    # Whoever started this holds the other end: when they are gone, however they went, so is this.
    await loop.run_in_executor(None, sys.stdin.buffer.read)


class Upstream:
    """The running process, seen from the benchmark."""

    def __init__(self, ports: list[int], bundle: str) -> None:
        self.port = ports[0]
        self.tls_port = ports[-1]
        self.bundle = bundle

    def url(self, behaviour: str) -> str:
        """Return the base URL that has the behaviour."""
        return f"http://127.0.0.1:{self.port}/{behaviour}/v1"

    def tls_url(self, behaviour: str) -> str:
        """Return the same over TLS; ``bundle`` is a CA file of full size that knows the certificate."""
        return f"https://localhost:{self.tls_port}/{behaviour}/v1"

    @property
    def sink(self) -> str:
        """Where a peer may send what it collects."""
        return f"http://127.0.0.1:{self.port}/sink"

    def get_counts(self, prefix: str) -> dict[str, int]:
        """Return what was asked under ``prefix``, such as ``at-once``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as response:
            counts: dict[str, dict[str, int]] = json.load(response)
        return counts.get(f"/{prefix}", dict.fromkeys(("fetches", "keys", "events", "actions", "most_in_flight"), 0))


@contextmanager
def start_upstream(*, tls: bool = False) -> Iterator[Upstream]:
    """Run the upstream in a process of its own while the context lasts."""
    with ExitStack() as stack:
        certificate = bundle = ""
        if tls:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            certificate, bundle = _write_certificates(folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.upstream", certificate], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(stop, process)
        assert process.stdout is not None
        yield Upstream(json.loads(process.stdout.readline()), bundle)


def _write_certificates(folder: Path) -> tuple[str, str]:
    import certifi
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, bundle = folder / "server.pem", folder / "bundle.pem"
    chain = [issued.private_key_pem, *issued.cert_chain_pems]
    certificate.write_bytes(b"".join(part.bytes() for part in chain))
    # As long as the bundle a site has: to load it is what a new Session pays at every connection.
    bundle.write_text(Path(certifi.where()).read_text() + authority.cert_pem.bytes().decode())
    return str(certificate), str(bundle)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process this run started; one that does not go is killed."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def refuse() -> Iterator[str]:
    """Give a base URL where every connection is refused: bound, so nobody else takes it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@contextmanager
def never_accept() -> Iterator[str]:
    """Give a base URL where connecting hangs: the listener's queue is full and nobody empties it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        probe = stack.enter_context(socket.socket())
        probe.settimeout(0.2)
        try:
            probe.connect(listener.getsockname())
        except TimeoutError:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        else:
            raise RuntimeError("this system lets connections in where nobody accepts them")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1] if len(sys.argv) > 1 else ""))

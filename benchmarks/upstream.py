"""The upstream in MoEngage's place: one process on loopback whose URLs name its behavior.

``/at-once/v1``, ``/delay-0.040/v1``, ``/close/v1`` (one request per connection), ``/hang/v1``, ``/drip/v1``,
``/status-500/v1``, ``/status-429/v1``, ``/hostile-0.095/v1`` (the bodies of hostile.py in turn, after that many
seconds). A second part, as in ``/at-once/redis/v1``, gets its own counters in ``/stats``. ``/sink`` accepts the reports
of the peers.
"""

from __future__ import annotations

import asyncio
import itertools
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

from benchmarks import hostile

KEYS = ("hero-banner", "promo-strip", "loyalty-card")
"""The experiences of the measured pages. The upstream also answers any other key."""

DRIP_SECONDS = 0.2

_names = itertools.cycle(hostile.BUILDERS)

READ_EVERY = 50
"""One of so many calls with events is parsed; parsing a call takes longer than sending it."""


def build_experience(key: str) -> dict[str, Any]:
    """Return an experience in its wire form, about 900 bytes (contract §2)."""
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


def count_actions(body: bytes, *, parse: bool) -> int:
    """Return the number of events in a body, found by their UUIDs; ``parse`` also checks it against the JSON."""
    number = body.count(b'"moe_event_uuid":')
    if parse and number != sum(len(element["actions"]) for element in json.loads(body)["elements"]):
        raise ValueError("the number of UUIDs is not the number of events")
    return number


class Counters:
    """The counters of the calls, by the prefix of their path."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.bodies: dict[str, str] = {}

    def of(self, prefix: str) -> dict[str, int]:
        """Return the counters of one prefix."""
        names = ("fetches", "keys", "events", "actions", "metadata", "in_flight", "most_in_flight")
        return self.counts.setdefault(prefix, dict.fromkeys(names, 0))

    def answer(self, prefix: str, path: str, body: bytes) -> bytes:
        """Count a call and return the body of its response, if nothing goes wrong."""
        counts = self.of(prefix)
        if path == "/experiences/fetch":
            keys = json.loads(body).get("experience_key", ())
            counts["fetches"] += 1
            counts["keys"] += len(keys)
            return f'{{"experiences":{{{",".join([self._get_text(key) for key in keys])}}}}}'.encode()
        if path == "/experiences/events":
            counts["actions"] += count_actions(body, parse=counts["events"] % READ_EVERY == 0)
            counts["events"] += 1
            return b'{"status":"success","message":"Your request has been accepted.","req_id":"SKuSLFnX"}'
        counts["metadata"] += 1
        return b'{"metadata":{"count":0,"experiences":[]}}'

    def _get_text(self, key: str) -> str:
        if key not in self.bodies:
            self.bodies[key] = f"{json.dumps(key)}:{json.dumps(build_experience(key))}"
        return self.bodies[key]


class Connection(asyncio.Protocol):
    """One connection without pipelining, since no client here uses it."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.received = b""
        self.timers: list[asyncio.TimerHandle] = []

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Stop dripping."""
        for timer in self.timers:
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
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
            self._write(json.dumps(self.counters.counts).encode())
        else:
            prefix, _, rest = path.partition("/v1")
            self._behave(prefix, prefix.split("/")[1], self.counters.answer(prefix, rest, body))

    def _behave(self, prefix: str, behavior: str, answer: bytes) -> None:
        name, _, detail = behavior.partition("-")
        if name == "delay":
            counts = self.counters.of(prefix)
            counts["in_flight"] += 1
            counts["most_in_flight"] = max(counts["in_flight"], counts["most_in_flight"])
            asyncio.get_running_loop().call_later(float(detail), self._answer_late, counts, answer)
        elif name == "hostile":
            asyncio.get_running_loop().call_later(float(detail), self._write, hostile.build(next(_names), KEYS[0]))
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
    counters = Counters()
    servers = [await loop.create_server(lambda: Connection(counters), "127.0.0.1", 0, backlog=1024)]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        tls = await loop.create_server(lambda: Connection(counters), "127.0.0.1", 0, ssl=context, backlog=1024)
        servers.append(tls)
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    # The benchmark holds the other end of stdin, so this process ends with it, even if it was killed.
    await loop.run_in_executor(None, sys.stdin.buffer.read)


class Upstream:
    """The running upstream process, as a benchmark uses it."""

    def __init__(self, ports: list[int], bundle: str) -> None:
        self.port = ports[0]
        self.tls_port = ports[-1]
        self.bundle = bundle

    def url(self, behavior: str) -> str:
        """Return the base URL for a behavior."""
        return f"http://127.0.0.1:{self.port}/{behavior}/v1"

    def tls_url(self, behavior: str) -> str:
        """See url(). This one uses TLS; ``bundle`` is a CA file of full size that contains its certificate."""
        return f"https://localhost:{self.tls_port}/{behavior}/v1"

    @property
    def sink(self) -> str:
        """The URL that accepts the reports of the peers."""
        return f"http://127.0.0.1:{self.port}/sink"

    def get_counts(self, prefix: str) -> dict[str, int]:
        """Return the counters of ``prefix``, such as ``at-once``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=5) as response:
            counts: dict[str, dict[str, int]] = json.load(response)
        return counts.get(f"/{prefix}", dict.fromkeys(("fetches", "keys", "events", "actions", "most_in_flight"), 0))


@contextmanager
def start_upstream(*, tls: bool = False) -> Iterator[Upstream]:
    """Run the upstream in a process of its own."""
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
    # As long as a site's bundle, since a new requests.Session loads it for each connection.
    bundle.write_text(Path(certifi.where()).read_text() + authority.cert_pem.bytes().decode())
    return str(certificate), str(bundle)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process that this run started; kill it if it doesn't end."""
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
    """Yield a base URL that refuses every connection: its port is bound, but nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@contextmanager
def never_accept() -> Iterator[str]:
    """Yield a base URL where connecting hangs: the listener's queue is full and nothing empties it."""
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
            raise RuntimeError("this system completes connections that no process accepts")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1] if len(sys.argv) > 1 else ""))

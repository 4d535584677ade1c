"""P3: one cold fetch through the whole package, against a bare round trip on a socket.

"Ours" is the time a page takes longer: attributes, cache key, miss, call, parsing, cache write. The bare
round trip writes and reads the same JSON and does nothing else.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import requests

from benchmarks import site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import alternate, describe
from benchmarks.upstream import KEYS, Upstream, start_upstream

GENEROUS = {"DEADLINE": 5.0}
"""So that no page gives up on a slow machine."""

QUESTION = {
    "identifiers": {"customer_id": "visitor-1"},
    "experience_key": list(KEYS),
    "USER_AGENT": site.USER_AGENT,
    "USER_IP_ADDRESS": "203.0.113.7",
    "DAY_OF_THE_WEEK": "Monday",
    "TIME_OF_THE_DAY": "12",
    "utm_source": "mail",
    "utm_medium": "email",
    "utm_campaign": "winter",
}


class BareSocket:
    """A keep-alive connection with as little code as possible."""

    def __init__(self, port: int, path: str, context: ssl.SSLContext | None = None) -> None:
        self.address = ("127.0.0.1", port)
        self.context = context
        self.session: ssl.SSLSession | None = None
        self.connection = self.connect()
        self.head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "

    def connect(self) -> socket.socket:
        """Return a new connection."""
        connection = socket.create_connection(self.address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is None:
            return connection
        return self.context.wrap_socket(connection, server_hostname="localhost", session=self.session)

    def ask(self) -> Any:
        """Return the JSON of the response."""
        body = json.dumps(QUESTION).encode()
        self.connection.sendall(f"{self.head}{len(body)}\r\n\r\n".encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, rest = received.partition(b"\r\n\r\n")
        place = head.index(b"Content-Length: ") + 16
        length = int(head[place:].split(b"\r\n", 1)[0])
        while len(rest) < length:
            rest += self._receive()
        return json.loads(rest)

    def _receive(self) -> bytes:
        data = self.connection.recv(65_536)
        expect(data, "the upstream closed a bare connection")
        return data

    def ask_on_new_connection(self) -> Any:
        """See ask(). The connection is a new one, and resumes the TLS session of the first connection."""
        self.connection.close()
        self.connection = self.connect()
        answer = self.ask()
        if self.session is None:
            # The session's ticket arrives after the handshake.
            self.session = self.connection.session  # type: ignore[attr-defined]
        return answer


def check_answer(answer: Any) -> None:
    """Raise WrongMeasurement unless the response has all three experiences."""
    expect(set(answer["experiences"]) == set(KEYS), f"the bare call got {answer}")


def build_page(ours: site.Site) -> Callable[[], bytes]:
    """Return a page that comes from another visitor each time and is checked each time."""

    def get() -> bytes:
        body = ours.get("/read/", HTTP_X_VISITOR=site.name_visitor())
        if body.count(b"Title of") != len(KEYS):
            raise AssertionError(f"the page does not have all experiences: {body!r}")
        return body

    return get


def measure(options: Options) -> Iterator[Figure]:
    """Measure an upstream that answers at once, one that answers after 40 ms, and one that ends each TLS connection."""
    with start_upstream(tls=True) as upstream:
        site.configure(moe=site.build_moe(upstream.url("at-once"), **GENEROUS))
        rounds = options.pick(121, 41)
        yield measure_plain(upstream, "at-once", "<= 2", rounds=rounds, calls=20)
        with site.override_moe(**site.build_moe(upstream.url("delay-0.040"), **GENEROUS)):
            yield measure_plain(upstream, "delay-0.040", "<= 1.01", rounds=options.pick(41, 15), calls=3)
        transport = {"OPTIONS": {"verify": upstream.bundle}}
        moe = site.build_moe(upstream.tls_url("close"), TRANSPORT=transport, **GENEROUS)
        with site.override_moe(**moe):
            yield measure_tls(upstream, rounds=options.pick(61, 21))


def measure_plain(upstream: Upstream, behavior: str, limit: str, *, rounds: int, calls: int) -> Figure:
    """Return the time that a cold page takes longer, against a bare keep-alive round trip."""
    plain, page = site.Site([site.NO_OP]), build_page(site.Site([site.OURS]))
    bare = BareSocket(upstream.port, f"/{behavior}/bare/v1/experiences/fetch")
    check_answer(bare.ask())
    session = requests.Session()
    contenders: dict[str, Callable[[], object]] = {
        "bare": bare.ask,
        "plain": lambda: plain.get("/plain/", HTTP_X_VISITOR=site.name_visitor()),
        "ours": page,
        "requests.Session": lambda: session.post(
            f"{upstream.url(behavior + '/session')}/experiences/fetch", json=QUESTION
        ).json(),
    }
    # The first page of a route doesn't know yet which experiences it needs: P5 counts its calls.
    page()
    before = upstream.get_counts(behavior)["fetches"]
    found = alternate(contenders, rounds=rounds, calls=calls)
    asked = upstream.get_counts(behavior)["fetches"] - before
    expect(asked == (rounds + 1) * calls, f"{(rounds + 1) * calls} cold pages made {asked} upstream calls")
    ratios = found.compute(lambda of: (of["ours"] - of["plain"]) / of["bare"])
    return Figure(
        what=f"time of a cold fetch, upstream {behavior} / of a bare round trip",
        baseline=found.median("bare") * 1e6,
        ours=median(found.compute(lambda of: of["ours"] - of["plain"])) * 1e6,
        ratio=median(ratios),
        limit=limit,
        unit="µs",
        notes=[describe(ratios), "ours is the time of the page minus the time of the plain page"],
        context={"requests.Session, ratio": median(found.ratio("requests.Session", "bare"))},
        profile=lambda: [page() for _ in range(2000 if behavior == "at-once" else 50)],
    )


def measure_tls(upstream: Upstream, *, rounds: int) -> Figure:
    """Return a cold page that needs a new TLS connection, against a bare new TLS connection. Both resume a session."""
    plain, page = site.Site([site.NO_OP]), build_page(site.Site([site.OURS]))
    # Loaded once, as a careful bare client does it.
    context = ssl.create_default_context(cafile=upstream.bundle)
    bare = BareSocket(upstream.tls_port, "/close/bare/v1/experiences/fetch", context)
    check_answer(bare.ask_on_new_connection())
    bare.ask_on_new_connection()
    expect(bare.connection.session_reused, "the bare connection did not resume its session")
    session = requests.Session()
    url = f"{upstream.tls_url('close/session')}/experiences/fetch"
    contenders: dict[str, Callable[[], object]] = {
        "bare": bare.ask_on_new_connection,
        "plain": lambda: plain.get("/plain/", HTTP_X_VISITOR=site.name_visitor()),
        "ours": page,
        "requests.Session": lambda: session.post(url, json=QUESTION, verify=upstream.bundle).json(),
    }
    found = alternate(contenders, rounds=rounds, calls=3)
    ratios = found.compute(lambda of: (of["ours"] - of["plain"]) / of["bare"])
    return Figure(
        what="time of a cold fetch after the TLS connection ended / of a bare new connection; both resume a session",
        baseline=found.median("bare") * 1e6,
        ours=median(found.compute(lambda of: of["ours"] - of["plain"])) * 1e6,
        ratio=median(ratios),
        limit="<= 1.3",
        unit="µs",
        notes=[describe(ratios), "all sides have a CA bundle of full size"],
        context={"requests.Session, ratio": median(found.ratio("requests.Session", "bare"))},
        profile=lambda: [page() for _ in range(200)],
    )


if __name__ == "__main__":
    run("P3", measure)

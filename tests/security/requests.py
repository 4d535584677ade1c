"""Random hostile requests from a seed, and functions that send them to the WSGI and the ASGI handler."""

import asyncio
import io
import random
import string
from collections.abc import Sequence
from contextvars import Context
from typing import Any
from urllib.parse import quote_from_bytes

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from tests.security.costs import Meter
from tests.security.worst import WorstCases

PATHS = ("/plain/", "/read/", "/tags/", "/panel/", "/cdn/", "/class/", "/method/", "/template-response/", "/missing/")
METHODS = ("GET",) * 8 + ("HEAD", "POST", "OPTIONS", "PUT")
PIECES = (
    *("\x00", "\r\n", "%00", "%0d%0a", "%", "%zz", "%ff", "+", "&", "=", ";", ",", ":", '"', "'", "<", ">", "\\", "/"),
    *("{", "}", "[", "]", "[[", "{}", "null", "é", "\ud800", "\u2028", "\u202e", "😀", "ª", "A" * 300, "9" * 60),
    *("anon-" + "0" * 32, "127.0.0.1", "::1", "[::1]:1", "8.8.8.8, 9.9.9.9", 'for="[2001:db8::1]:99"', "for=_x"),
    *("identifiers", "experience_key", "USER_AGENT", "utm_source", "utm_medium", "events", "__proto__", "b_id"),
    *("1", "true", "cross-site", "prefetch", "javascript:", "//evil.example", ".eJx", ":1abcde:", "-1", "1e999"),
)
HEADERS = (
    *("User-Agent", "X-Forwarded-For", "Forwarded", "Sec-GPC", "Sec-Purpose", "Purpose", "Sec-Fetch-Site", "Referer"),
    *("Accept-Language", "If-None-Match", "X-Moz", "DNT", "X-Requested-With", "Accept", "Via", "X-User"),
)
TYPES = (
    *("text/plain;charset=UTF-8", "application/json", "application/x-www-form-urlencoded", "multipart/form-data", "x"),
)


class Generator:
    """Builds requests, with cookies and tokens of the site, whole and altered.

    ``own`` is the cookie of one visitor who sends many requests.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.own = ""
        self.cookies: list[str] = []
        self.tokens: list[str] = []
        self._worst = WorstCases(self._chance, self.tokens)

    def write(self, pieces: int = 4) -> str:
        chance = self._chance
        return "".join(
            chance.choice(PIECES) if chance.random() < 0.7 else chance.choice(string.printable)
            for _ in range(chance.randrange(pieces + 1))
        )

    def alter(self, text: str) -> str:
        """Return the text unchanged, or changed in one place, cut or repeated."""
        chance = self._chance
        place = chance.randrange(len(text) + 1)
        match chance.randrange(4):
            case 0:
                return text
            case 1:
                return text[:place] + self.write(2) + text[place + 1 :]
            case 2:
                return text[:place]
            case _:
                return text + text[:place]

    def build(self) -> tuple[str, str, str, dict[str, str], bytes]:
        chance = self._chance
        if chance.random() < 0.1:
            method, path, query, headers, body = self._worst.build()
            # From a visitor who owns some of the tokens.
            headers.setdefault("Cookie", f"moe_id={self.own if chance.random() < 0.8 else 'x'}")
            return method, path, query, headers, body
        headers = {chance.choice(HEADERS): self._clean(self.write()) for _ in range(chance.randrange(5))}
        headers["Host"] = "testserver"
        if chance.random() < 0.6:
            headers["Cookie"] = self._clean(self._write_cookies())
        kind = chance.random()
        if kind < 0.25:
            body = self._write_beacon()
            headers["Content-Type"] = chance.choice(TYPES)
            if chance.random() < 0.9:
                headers["Content-Length"] = str(len(body))
            return "POST", "/moe/beacon/", "", headers, body
        if kind < 0.4:
            token = self.alter(chance.choice(self.tokens) if self.tokens else self.write(8))
            return "GET", f"/moe/click/{token.replace('/', '')}/", "", headers, b""
        query = "&".join(
            f"{self._quote(self.write(2))}={self._quote(self.write())}" for _ in range(chance.randrange(4))
        )
        if chance.random() < 0.5:
            query += "&utm_source=" + self._quote(self.write())
        return chance.choice(METHODS), chance.choice(PATHS), query, headers, b""

    def _quote(self, text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return quote_from_bytes(data, safe="%+;") if self._chance.random() < 0.8 else self._clean(text).replace("#", "")

    def _clean(self, text: str) -> str:
        # Servers pass on latin-1 without line ends.
        return text.encode("utf-8", "surrogatepass").decode("latin-1").translate({10: None, 13: None, 0: None}).strip()

    def _write_cookies(self) -> str:
        own = self.alter(self._chance.choice(self.cookies)) if self.cookies else self.write()
        return "; ".join([f"moe_id={own}", f"sessionid={self.write()}", self.write(2)])

    def _write_beacon(self) -> bytes:
        chance = self._chance
        token = self.alter(chance.choice(self.tokens)) if self.tokens else self.write()
        report = chance.choice((["impression", token], ["click", token, self.write(1)], [token], self.write(), 7, None))
        text = repr({"events": [report] * chance.choice((1, 1, 3, 200))}).replace("'", '"').replace("None", "null")
        if chance.random() < 0.2:
            text = self.alter(text)
        if chance.random() < 0.02:
            text = "[" * 5000
        prefix = "events=" if chance.random() < 0.2 else ""
        return (prefix + text).encode("utf-8", "surrogatepass")


Answer = tuple[int, list[tuple[str, str]], bytes]


def ask_wsgi(handler: WSGIHandler, request: tuple[str, str, str, dict[str, str], bytes], meter: Meter) -> Answer:
    """Send a request over WSGI (PEP 3333) and return status, headers and body of the answer."""
    method, path, query, headers, body = request
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode("utf-8", "surrogatepass").decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "9.9.9.9",
        "wsgi.input": io.BytesIO(body),
        "wsgi.url_scheme": "http",
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key.startswith("CONTENT_") else f"HTTP_{key}"] = value
    started: list[Any] = []
    with meter.measure():
        response = handler(environ, lambda status, sent, *rest: started.extend((status, sent)))
        try:
            return int(started[0][:3]), started[1], b"".join(response)
        finally:
            response.close()


def ask_asgi(
    handler: ASGIHandler, requests: Sequence[tuple[str, str, str, dict[str, str], bytes]], meter: Meter
) -> list[Answer]:
    """Send requests over ASGI, one after the other in one event loop, and return the answers."""

    async def ask_all() -> list[Answer]:
        return [await _ask_asgi(handler, request, meter) for request in requests]

    # In an empty context, as in a server. asgiref copies all context variables between threads, and earlier tests left
    # hundreds of them.
    return Context().run(asyncio.run, ask_all())


async def _ask_asgi(handler: ASGIHandler, request: tuple[str, str, str, dict[str, str], bytes], meter: Meter) -> Answer:
    method, path, query, headers, body = request
    scope = {
        "type": "http",
        "method": method,
        "path": path.encode("utf-8", "replace").decode(),
        "query_string": query.encode("latin-1", "replace"),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("9.9.9.9", 1),
        "server": ("testserver", 80),
        "scheme": "http",
    }
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with meter.measure():
        await handler(scope, incoming.get, send)
    found = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in sent[0]["headers"]]
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])

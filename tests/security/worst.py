"""The most expensive requests that a server passes on, for each part of the package that reads requests."""

import base64
import json
import random
import zlib
from collections.abc import Callable, Sequence

from django.core import signing

from django_moe_personalize.tracking.tokens import SALT

Built = tuple[str, str, str, dict[str, str], bytes]

HEADER = 60_000
"""Characters of a header or a query. uvicorn accepts 64 KiB in all, gunicorn 8 KiB a line, waitress 256 KiB in all."""

BODY = 16_000

_PAIRS = ("utm_source=%ff%fe", "%75tm_source=x", "%41%ff=1", "a=b", "+", "utm_medium=%00", "utm_source=%F0%9F%98%80")
_AGENTS = ("\x01", "a\x80", "\u00e9", "cubot", "bo", " ", "\u00a0")
_COOKIES = ("moe_id=", "a=1; ", "moe_id=x; ", "\u00c2\u00a0moe_id=x; ", '"\\', "=;", "sessionid=x:y:z; ")
_BODIES = (b"[", b'{"a":', b"9", b"[1e400],", b'"\\u0041', b"{},", b'{"events":[[],', b"\xff", b'["impression","."],')
BOMB = base64.urlsafe_b64encode(zlib.compress(bytes(2_000_000), 9)).decode().strip("=")


class WorstCases:
    """Builds expensive requests, with tokens of the site."""

    def __init__(self, chance: random.Random, tokens: Sequence[str]) -> None:
        self._chance = chance
        self._tokens = tokens

    def build(self) -> Built:
        kinds: tuple[Callable[[], Built], ...] = (
            self._ask_with_agent,
            self._ask_through_proxies,
            self._ask_with_query,
            self._ask_with_cookies,
            self._click,
            self._report_much,
            self._report_badly,
            self._report_in_parts,
        )
        return self._chance.choice(kinds)()

    def _ask_with_agent(self) -> Built:
        return self._ask({"User-Agent": self._fill(self._chance.choice(_AGENTS), HEADER)})

    def _ask_through_proxies(self) -> Built:
        chance = self._chance
        node = chance.choice(("{}", "for={}", 'for="[{}]";proto=https', "for={};" + "a=b;" * 20, ";" * 50, "{}:80"))
        separator = chance.choice((",", ", "))
        # Many different addresses of trusted proxies, which are all searched.
        nodes = (node.format(f"10.{chance.randrange(256)}.{n >> 8}.{n & 255}") for n in range(HEADER // len(node) // 5))
        name = chance.choice(("X-Forwarded-For", "Forwarded"))
        return self._ask({name: separator.join(nodes)[:HEADER]})

    def _ask_with_query(self) -> Built:
        length = self._chance.choice((8_000, HEADER))
        return self._ask({}, self._fill(self._chance.choice(_PAIRS) + "&", length))

    def _ask_with_cookies(self) -> Built:
        return self._ask({"Cookie": self._fill(self._chance.choice(_COOKIES), HEADER)})

    def _click(self) -> Built:
        chance = self._chance
        token = chance.choice(self._tokens) if self._tokens else "x"
        bomb = signing.TimestampSigner(key="guessed", salt=SALT).sign(f".{BOMB}")
        token = chance.choice((token * 100, ":" * HEADER, "." * HEADER, bomb, f".{BOMB}:" + token.partition(":")[2]))
        return "GET", f"/moe/click/{token}/", "", {"Host": "testserver"}, b""

    def _report_much(self) -> Built:
        """Report as many genuine tokens as fit, of one visitor or of many."""
        chance = self._chance
        tokens = list(self._tokens) or ["x"]
        one = chance.choice(tokens)
        forged = one[:-1] + chance.choice("xyz")
        element = chance.choice(("", "cta", "x" * 100))
        picked = chance.choice(([one] * 100, [forged] * 100, tokens, [f"x:{number}:y" for number in range(200)]))
        reports = [["impression", token] if chance.random() < 0.5 else ["click", token, element] for token in picked]
        while len(json.dumps({"events": reports})) > BODY:
            reports.pop()
        return self._report(json.dumps({"events": reports}).encode(), "text/plain")

    def _report_badly(self) -> Built:
        piece = self._chance.choice(_BODIES)
        body = self._chance.choice((b"", b"[", b'{"events":[', b"events=", b"events=%5B")) + piece * (
            BODY // len(piece)
        )
        return self._report(body, self._chance.choice(("text/plain", "application/x-www-form-urlencoded")))

    def _report_in_parts(self) -> Built:
        chance = self._chance
        head = chance.choice(
            (
                b'Content-Disposition: form-data; name="e"',
                b'Content-Disposition: form-data; name="e"; filename="f"',
                b'Content-Disposition: form-data; name="events"\r\nContent-Transfer-Encoding: base64',
                b'Content-Disposition: form-data; name="' + b"\\" * 900 + b'"',
            )
        )
        part = b"--x\r\n" + head + b"\r\n\r\n" + b"=\r\na-" * chance.choice((1, 1000)) + b"\r\n"
        charset = chance.choice(("", "; charset=hex", "; charset=punycode", "; charset=zlib", "; charset=undefined"))
        body = (part * (BODY // len(part)))[: BODY - 10] + b"\r\n--x--\r\n"
        return self._report(body, f"multipart/form-data; boundary=x{charset}")

    def _fill(self, text: str, length: int) -> str:
        return self._chance.choice(("", "a", "utm_source=y&", "moe_id=z; ")) + text * (length // len(text))

    def _ask(self, headers: dict[str, str], query: str = "") -> Built:
        path = self._chance.choice(("/read/", "/tags/", "/template-response/"))
        return "GET", path, query, {"Host": "testserver", **headers}, b""

    def _report(self, body: bytes, kind: str) -> Built:
        # Some servers pass on more or less than the header says.
        length = self._chance.choice((len(body), len(body), len(body), 10, BODY))
        headers = {"Host": "testserver", "Content-Type": kind, "Content-Length": str(length)}
        return "POST", "/moe/beacon/", "", headers, body

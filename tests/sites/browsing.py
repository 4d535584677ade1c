"""Browsers of visitors whose content has recognizable words (canaries), and a MoEngage workspace with this content."""

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import requests

from tests.services.serving import ask_sandbox
from tests.sites.serving import Site

USERS, STAFF, ANONYMOUS = ("ada", "grace"), ("edith",), ("alan", "edsger")
NAMES = (*USERS, *STAFF, *ANONYMOUS)


def _choose(word: str, attribute: str, value: str) -> list[dict[str, Any]]:
    payload = {name: {"Title": f"{name}-{word}", "Text": f"{name}-{word}"} for name in NAMES}
    return [{"audience": {attribute: {"contains": f"{name}{value}"}}, "payload": payload[name]} for name in NAMES]


WORKSPACE = {
    "workspace_id": "SITES",
    "api_key": "sites-key",
    "customers": {f"customer-{name}": {"name": name} for name in USERS},
    "experiences": [
        {"key": "hero-banner", "name": "Hero", "content": _choose("hero", "USER_AGENT", "-laptop")},
        {"key": "promo-strip", "name": "Strip", "content": _choose("strip", "customer.name", "")},
    ],
}


def find_csrf_token(page: str) -> str:
    return re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]  # type: ignore[index]


class Browser:
    """A visitor's browser. It counts the pages with its own banner and the answers with another visitor's canary."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        self.session = requests.Session()
        self.session.headers["User-Agent"] = f"Mozilla/5.0 (X11; {name}-laptop) Firefox/140.0"
        self.answers: list[str] = []
        self.shown = 0
        self.tokens: set[str] = set()
        self._etags: dict[str, str] = {}

    def open(self, path: str, method: str = "GET", **headers: str) -> requests.Response:
        response = self.session.request(
            method, self.site.url + path, headers=headers, allow_redirects=False, timeout=60, proxies={"no_proxy": "*"}
        )
        assert response.status_code < 500 or "/fail/" in path, (
            path,
            response.status_code,
            self.site.read_log()[-3000:],
        )
        self._etags[path] = response.headers.get("ETag", "")
        if method == "GET" and response.status_code == 200 and f"{self.name}-hero" in response.text:
            self.shown += 1
        self.tokens |= set(re.findall(r"/moe/click/([^\"'/]+)", response.text))
        self.answers.append(f"{path} {response.status_code} {response.headers}\n{response.text}")
        return response

    def sign_in(self, path: str, field: str = "username") -> None:
        form = self.session.get(self.site.url + path, timeout=60)
        data = {field: self.name, "password": self.name, "csrfmiddlewaretoken": find_csrf_token(form.text)}
        answer = self.session.post(self.site.url + path, data, timeout=60, allow_redirects=False)
        assert answer.status_code == 302, answer.text

    def browse(self, paths: Sequence[str], number: int) -> None:
        """Open ``number`` pages by chance."""
        chance = random.Random(self.name)
        self.open(f"{paths[0]}?utm_source={self.name}-campaign")
        for _ in range(number - 1):
            path, headers = chance.choice(paths), {}
            if chance.random() < 0.3 and self._etags.get(path):
                headers["If-None-Match"] = self._etags[path]
            if chance.random() < 0.2:
                headers["HX-Request"] = "true"
            self.open(path, "HEAD" if chance.random() < 0.1 else "GET", **headers)

    @property
    def traits(self) -> set[str]:
        """The words that only this visitor may see."""
        ids = {c.value.partition(":")[0] for c in self.session.cookies if c.name == "moe_id" and c.value}
        own = {f"{self.name}-hero", f"{self.name}-strip", f"{self.name}-campaign", f"customer-{self.name}"}
        return own | ids | self.tokens


def browse_together(browsers: Sequence[Browser], paths: Sequence[str], number: int) -> None:
    """Let all visitors browse at the same time, with ``number`` pages in all."""
    with ThreadPoolExecutor(len(browsers)) as pool:
        list(pool.map(lambda browser: browser.browse(paths, number // len(browsers)), browsers))


def find_foreign(browsers: Sequence[Browser]) -> list[str]:
    """Return the answers that have a canary of another visitor, each as "visitor: trait in path"."""
    found: list[str] = []
    for browser in browsers:
        others = {trait for other in browsers if other is not browser for trait in other.traits}
        pattern = re.compile("|".join(map(re.escape, others)))
        matches = ((answer, pattern.search(answer)) for answer in browser.answers)
        found += [f"{browser.name}: {match[0]} in {answer.partition(' ')[0]}" for answer, match in matches if match]
    return found


def find_cached(redis_url: str, database: int, browsers: Sequence[Browser]) -> list[str]:
    """Return the entries of the site's own cache that have a canary."""
    traits = [trait.encode() for browser in browsers for trait in browser.traits]
    client = redis.Redis.from_url(f"{redis_url}/{database}")
    return [
        f"{key!r}: {trait!r}"
        for key in client.scan_iter(count=1000)
        for trait in traits
        if any(trait in text for text in _read_value(client, key))
    ]


def _read_value(client: Any, key: bytes) -> Iterator[bytes]:
    value = client.get(key)
    yield value
    # A site cache outside of GZipMiddleware keeps compressed pages.
    start = value.find(b"\x1f\x8b\x08")
    if start >= 0:
        yield zlib.decompressobj(31).decompress(value[start:])


def count_impressions(sandbox: int) -> Counter[str]:
    """Return how many impressions of the banner each visitor has, by the customer's name or the anonymous id."""
    entries = ask_sandbox(sandbox, "ledger")["entries"]
    shown = [entry for entry in entries if entry["experience_key"] == "hero-banner" and "SHOWN" in entry["action"]]
    return Counter(entry["customer_id"].removeprefix("customer-") for entry in shown)

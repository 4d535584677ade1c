"""Forged, altered, foreign, old and repeated reports count nothing."""

import json
import random
import re
import string
import time
import uuid

import pytest
from django.core import signing
from django.test import Client

from django_moe_personalize import views
from django_moe_personalize.testing import override_experiences
from django_moe_personalize.tracking.tokens import SALT, TOKEN_MAX_AGE

ALPHABET = string.ascii_letters + string.digits + "-_:."


@pytest.fixture
def shown(settings):
    """Give every visitor a hero, with a mark and a link."""
    settings.ROOT_URLCONF = "tests.site"
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    with override_experiences({"hero-banner": {"Title": "Hello", "CtaLabel": "Go"}}, IMPRESSIONS="visible") as shown:
        yield shown


def read_tokens(client):
    """Return the tokens of the mark and of the link in a page of this client."""
    page = client.get("/tags/").content.decode()
    return re.search(r'data-moe-experience="([^"]+)"', page)[1], re.search(r"/moe/click/([^/]+)/", page)[1]


def forge(chance, token):
    """Return a text that looks like ``token`` but is different."""
    body, _, signature = token.rpartition(":")
    match chance.randrange(8):
        case 0:
            place = chance.randrange(len(token))
            other = chance.choice([c for c in ALPHABET if c != token[place]])
            return token[:place] + other + token[place + 1 :]
        case 1:
            return token[: chance.randrange(len(token))]
        case 2:
            return token + chance.choice(ALPHABET)
        case 3:
            return body + ":" + "".join(chance.sample(signature, len(signature))) + "x"
        case 4:
            return signing.dumps([str(uuid.uuid4())] * 7, salt="guessed", compress=True)
        case 5:
            return signing.dumps([str(uuid.uuid4())] * 7, key="guessed", salt=SALT, compress=True)
        case 6:
            return token.swapcase()
        case _:
            # A text with another signature of the site.
            return signing.dumps({"events": token}, salt="django.contrib.sessions.backends.signed_cookies")


def send(client, reports, **headers):
    body = json.dumps({"events": reports})
    assert client.post("/moe/beacon/", body, content_type="text/plain", headers=headers).status_code == 204


def count(shown):
    return len(shown.engine.ledger.entries())


def test_forged_and_altered_reports_count_nothing(shown, extent, tell):
    """A report without a genuine signature counts nothing. A genuine report of the same visitor counts."""
    client, chance = Client(), random.Random(2026)
    mark, link = read_tokens(client)
    wanted = extent(400, 10_000)
    for start in range(0, wanted, 100):
        forged = [forge(chance, chance.choice((mark, link))) for _ in range(100)]
        send(client, [["impression", token] for token in forged])
        send(client, [["click", token, "cta"] for token in forged])
        client.get(f"/moe/click/{forged[start % 100].replace('/', '')}/")
    assert count(shown) == 0
    send(client, [["impression", mark]])
    assert count(shown) == 1
    tell(f"{2 * wanted} forged reports: 0 counted")


def test_repeated_reports_count_once(shown, extent, tell, monkeypatch):
    """A genuine report counts once, in any order and together with any other reports."""
    # The limit of a minute must not be the reason.
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 1_000_000)
    client, chance = Client(), random.Random(2026)
    mark, link = read_tokens(client)
    reports = [["impression", mark], ["impression", link], ["click", mark, ""], ["click", mark, "other"]]
    send(client, reports[:2])
    client.get(f"/moe/click/{link}/")
    genuine = count(shown)
    assert genuine == 2
    wanted = extent(400, 10_000)
    for _ in range(wanted // 20):
        send(client, [chance.choice(reports) for _ in range(20)])
        client.get(f"/moe/click/{link}/")
    assert count(shown) == genuine
    tell(f"{wanted} repeated reports: 0 counted besides {genuine}")


def test_foreign_and_old_reports_count_nothing(shown, extent, tell, monkeypatch):
    """A token counts nothing in another browser, from another site, from a robot, or a day later."""
    client, other = Client(), Client()
    tokens = [read_tokens(client)[0] for _ in range(extent(20, 200))]
    read_tokens(other)
    reports = [["impression", token] for token in tokens]
    send(other, reports)
    send(Client(), reports)
    send(client, reports, **{"Sec-Fetch-Site": "cross-site"})
    send(client, reports, **{"User-Agent": "Googlebot/2.1"})
    send(client, reports, **{"Sec-Purpose": "prefetch"})
    send(client, reports, **{"Sec-GPC": "1"})
    yesterday = time.time() - TOKEN_MAX_AGE - 60
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: yesterday)
        old = [read_tokens(client)[0] for _ in tokens]
    send(client, [["impression", token] for token in old])
    assert count(shown) == 0
    send(client, reports[:1])
    assert count(shown) == 1
    tell(f"{7 * len(reports)} foreign, old and unwanted reports: 0 counted")


def test_swapped_identity_counts_nothing(shown):
    """Reports with a cookie that is invented, cut or signed for another purpose count nothing."""
    client = Client()
    mark, _ = read_tokens(client)
    genuine = client.cookies["moe_id"].value
    signed = signing.get_cookie_signer(salt="moe_idother").sign(genuine.partition(":")[0])
    for value in (genuine[:-1], genuine.upper(), genuine.partition(":")[0], signed, "anon-" + "0" * 32):
        client.cookies["moe_id"] = value
        send(client, [["impression", mark]])
    assert count(shown) == 0

"""Attacks by someone who has read the code. Each of them worked once, or nearly."""

import json
import time
import uuid
from ipaddress import ip_network

import pytest
from django.core import signing
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse
from django.template import engines
from django.test import Client, RequestFactory
from django.urls import path
from django.views.decorators.cache import cache_control, cache_page
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import condition

from django_moe_personalize import tracking, views
from django_moe_personalize.context import Personalization
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.tracking.tokens import SALT
from django_moe_personalize.visitor import attributes, identity
from django_moe_personalize.visitor.attributes import get_client_ip
from django_moe_personalize.visitor.identity import GRANTED, Identity, get_identity
from tests import site
from tests.pages import BROWSER
from tests.security.costs import Meter
from tests.security.requests import ask_asgi, ask_wsgi
from tests.security.test_counts import count, read_tokens, send
from tests.security.worst import BOMB

HERE = "tests.security.test_attacks"
CONTENT = {"Title": "Hello", "CtaLabel": "Go", "Host": "evil.example", "Url": "https://evil.example/"}
THREAD = {"BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery", "OPTIONS": {"interval": 3600}}

urlpatterns = [
    *site.urlpatterns,
    path("public/", cache_control(public=True, max_age=600)(site.tags)),
    path("etag/", condition(etag_func=lambda request: '"1"')(site.tags)),
    path("zipped/", gzip_page(site.tags)),
    path("kept/", cache_page(600)(site.tags)),
    path("crash/", site.failing),
]


def handler404(request, exception):
    return HttpResponse(site.show(request, site.TAGS).content, status=404)


def handler500(request):
    return HttpResponse(site.show(request, site.TAGS).content, status=500)


def put_another_page(get_response):
    """Replace each missing page with a page that reads an experience, as flatpages do."""

    def middleware(request):
        response = get_response(request)
        return site.show(request, site.TAGS) if response.status_code == 404 else response

    return middleware


def fail_late(get_response):
    def middleware(request):
        get_response(request)
        raise RuntimeError("the site's own")

    return middleware


asked = []


def identify(request):
    asked.append(request)
    return Identity("ada")


@pytest.fixture
def shown(settings, handlers):
    settings.ROOT_URLCONF = HERE
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    with override_experiences({"hero-banner": CONTENT}) as shown:
        yield shown


def render(client, source, **headers):
    """Render a template inside ``{% experience %}`` for the visitor of the client."""
    cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
    request = RequestFactory(headers={"Cookie": cookie, **headers}).get("/page/")
    request.personalization = Personalization(request)
    source = "{% load moe_personalize %}{% experience 'hero-banner' as hero %}" + source + "{% endexperience %}"
    return engines["django"].from_string(source).render({}, request)


# The cookie of an anonymous visitor


@pytest.mark.parametrize("space", ["\u2000", "\u00a0", "\u0085", "\u3000"])
@pytest.mark.parametrize("with_own", [True, False])
def test_cookie_of_another_host_of_the_domain(shown, space, with_own):
    """Browsers accept the name from any host of the domain, and Django reads it as ``__Host-``. The package doesn't."""
    own, attacker = Client(), Client()
    for client in (own, attacker):
        client.get("/read/", secure=True)
    genuine, tossed = (client.cookies["__Host-moe_id"].value for client in (own, attacker))
    cookies = [f"__Host-moe_id={genuine}"] * with_own + [f"{space}__Host-moe_id={tossed}"]
    environ = RequestFactory().get("/", secure=True).META
    request = WSGIRequest({**environ, "HTTP_COOKIE": "; ".join(cookies).encode().decode("latin-1")})
    assert request.COOKIES["__Host-moe_id"] == tossed, "Django reads the attacker's cookie"
    found = get_identity(request, GRANTED).customer_id
    assert found != tossed.partition(":")[0]
    assert (found == genuine.partition(":")[0]) == with_own


# Pages that caches store


@pytest.mark.parametrize("path", ["/public/", "/etag/", "/zipped/", "/kept/"])
def test_what_a_view_says_of_caches(shown, settings, path):
    """A page with an experience is private, even if the view or a middleware of the site asks caches to store it."""
    middleware = "django.middleware.http.ConditionalGetMiddleware", "django.middleware.gzip.GZipMiddleware"
    settings.MIDDLEWARE = [*middleware, *settings.MIDDLEWARE]
    for _ in range(2):
        response = Client().get(path, headers={"Accept-Encoding": "gzip"})
        assert response.headers["Cache-Control"] == "private, no-store"
        assert "Cookie" in response.headers["Vary"]
        assert "moe_id" in response.cookies
    kept = Client().get(path, headers={"If-None-Match": '"1"'})
    assert kept.status_code == (304 if path == "/etag/" else 200)
    assert "Hello" not in kept.content.decode() or kept.headers["Cache-Control"] == "private, no-store"


@pytest.mark.parametrize("path", ["/missing/", "/nothing-there/"])
def test_page_put_in_place_of_another(shown, settings, path, visit):
    """A page that another middleware renders after the seal shows fallbacks, because it isn't private."""
    settings.MIDDLEWARE = [f"{HERE}.put_another_page", *settings.MIDDLEWARE]
    response = visit(path)
    assert response.status_code == 200
    assert b"Welcome" in response.content
    assert b"Hello" not in response.content


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("path", "status"), [("/nothing-there/", 404), ("/crash/", 500), ("/tags/", 200)])
def test_error_pages_that_read(shown, settings, path, status, late):
    """An error page of the site counts nothing. It is private, or shows the fallback."""
    if late:
        settings.MIDDLEWARE = [f"{HERE}.fail_late", *settings.MIDDLEWARE]
    response = Client(raise_request_exception=False).get(path)
    assert response.status_code == (500 if late else status)
    is_sealed = response.headers.get("Cache-Control") == "private, no-store"
    assert is_sealed == (b"Hello" in response.content) == (not late)
    assert count(shown) == (1 if path == "/tags/" else 0)


# Links


@pytest.mark.parametrize(
    "destination",
    [
        "'https://'|add:hero.Host",
        "'https:'|add:'//'|add:hero.Host",
        "''|default:hero.Url",
        "'x'|cut:'x'|add:hero.Url",
        "'https://shop.example'|add:'.'|add:hero.Host",
        "'https://shop.example'|add:'@'|add:hero.Host",
        "hero.Url",
    ],
)
def test_content_behind_what_an_author_wrote(shown, client, destination):
    """A filter that appends content to a literal can't change the host."""
    client.get("/read/")
    url = render(client, f"{{% click_url hero {destination} %}}")
    assert url == "#"


@pytest.mark.parametrize("destination", ["'https://shop.example/?to='|add:hero.Host", "'https://shop.example/'"])
def test_host_that_an_author_wrote(shown, client, destination):
    """A literal host is allowed, and content may follow it."""
    client.get("/read/")
    response = client.get(render(client, f"{{% click_url hero {destination} %}}"))
    assert response.status_code == 302
    assert response.headers["Location"].startswith("https://shop.example/")


@pytest.mark.parametrize("end", ["\r\nSet-Cookie: a=b", "\nLocation: //evil.example", "\x00", "\u2028", "\ud800", "é"])
def test_destination_is_one_header(shown, client, end):
    """The redirect is one printable line and stays on the site, with any text in the destination."""
    client.get("/read/")
    customer_id = client.cookies["moe_id"].value.partition(":")[0]
    event = Event(Action.CLICKED, customer_id, {"cid": "x"}, int(time.time()))
    response = client.get(f"/moe/click/{tracking.Token.build(event, destination=f'/a{end}').sign()}/")
    assert response.status_code in (302, 400)
    assert "a" not in response.cookies
    assert response.headers.get("Location", "/").isprintable()


def test_page_under_another_host(shown, settings, client):
    """A link from a page under one host doesn't redirect to it under another, even if all hosts are allowed."""
    settings.ALLOWED_HOSTS = ["*"]
    client.get("/read/")
    url = render(client, "{% click_url hero hero.Url %}", Host="evil.example")
    assert url.startswith("/moe/click/")
    assert client.get(url).status_code == 400
    assert client.get(url, headers={"X-Forwarded-Host": "evil.example"}).status_code == 400


def test_link_after_the_secret_has_gone(shown, settings, client):
    """With another SECRET_KEY and no fallback, old cookies, links and marks mean nothing."""
    mark, link = read_tokens_of(client)
    settings.SECRET_KEY = "another"
    send(client, [["impression", mark]])
    assert client.get(f"/moe/click/{link}/").status_code == 400
    before = client.cookies["moe_id"].value.partition(":")[0]
    client.get("/read/")
    assert client.cookies["moe_id"].value.partition(":")[0] != before
    assert count(shown) == 0


def read_tokens_of(client):
    """Return the tokens of a mark and a link for this client. The page itself counts nothing."""
    with override_personalize(IMPRESSIONS="visible"):
        return read_tokens(client)


# Reports


def test_link_opened_again_and_again(shown, client, monkeypatch):
    """A link that is replayed adds no more events to the delivery than a person's clicks."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 5)
    now = time.time() // 60 * 60
    monkeypatch.setattr(time, "time", lambda: now)
    with override_personalize(DELIVERY=THREAD, IMPRESSIONS="visible"):
        mark, link = read_tokens(client)
        assert {client.get(f"/moe/click/{link}/").status_code for _ in range(20)} == {302}
        assert get_delivery().counts().accepted == 5
        # Beacons have their own limit, and so does another visitor.
        send(client, [["impression", mark]])
        assert get_delivery().counts().accepted == 6
        other = Client()
        other.get(f"/moe/click/{read_tokens(other)[1]}/")
        assert get_delivery().counts().accepted == 7
        now += 60
        client.get(f"/moe/click/{link}/")
        assert get_delivery().counts().accepted == 8


def test_visitors_made_up_to_fill_the_memory(monkeypatch):
    """Without a shared cache, a process counts the reports of a limited number of visitors."""
    monkeypatch.setattr(views, "MAX_VISITORS_A_MINUTE", 3)
    assert [views._count_alone(1, "clicks", name) for name in "aabcda"] == [1, 2, 1, 1, 1, 1]
    assert len(views._get_reports()[1]) <= 3
    assert views._count_alone(2, "clicks", "a") == 1
    assert list(views._get_reports()) == [2]


@pytest.mark.parametrize("charset", ["hex", "base64", "zlib", "rot13", "uu", "punycode", "idna", "undefined", "nix"])
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain"])
def test_encoding_of_a_beacon(shown, kind, charset):
    """A slow encoding, or one that isn't for text, gets the usual answer."""
    body = b'--x\r\nContent-Disposition: form-data; name="events"\r\n\r\na-b-c\r\n--x--\r\n'
    body = body if kind.startswith("multipart") else b"events=%5B%5D&%5B=%5B"
    headers = {"Host": "testserver", "Content-Type": f"{kind}; charset={charset}", "Content-Length": str(len(body))}
    request = "POST", "/moe/beacon/", "", headers, body
    assert ask_wsgi(WSGIHandler(), request, Meter())[0] == 204
    assert ask_asgi(ASGIHandler(), [request], Meter())[0][0] == 204


def test_form_of_many_parts(shown, client):
    """A form with too many parts is not parsed."""
    mark, _ = read_tokens_of(client)
    part = '--x\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    report = part.format("events", json.dumps([["impression", mark]]))
    for more, counted in ((views.MAX_BEACON_PARTS, 0), (views.MAX_BEACON_PARTS - 2, 1)):
        body = part.format("a", "b") * more + report + "--x--\r\n"
        client.post("/moe/beacon/", body, content_type="multipart/form-data; boundary=x")
        assert count(shown) == counted


# The test client connects close_old_connections() again, and another test may have left a connection.
@pytest.mark.django_db
@pytest.mark.parametrize("announced", [10, 16_384])
def test_more_than_was_announced(shown, client, announced):
    """A body that is longer than its Content-Length is cut at the limit."""
    mark, _ = read_tokens_of(client)
    body = json.dumps({"events": [["impression", mark]], "more": "x" * 20_000}).encode()
    cookie = f"moe_id={client.cookies['moe_id'].value}"
    headers = {"Host": "testserver", "Cookie": cookie, "Content-Type": "text/plain", "Content-Length": str(announced)}
    request = "POST", "/moe/beacon/", "", headers, body
    assert ask_asgi(ASGIHandler(), [request], Meter())[0][0] == 204
    assert ask_wsgi(WSGIHandler(), request, Meter())[0] == 204
    assert count(shown) == 0


def test_identify_is_asked_once_a_beacon(shown, client):
    """A beacon with many reports calls IDENTIFY once, because that may need a query. Forged reports don't call it."""
    with override_personalize(IDENTIFY=f"{HERE}.identify"):
        mark, _ = read_tokens_of(client)
        asked.clear()
        send(client, [["impression", mark[:-1]]] * 20)
        assert asked == []
        send(client, [["impression", mark], *[["click", mark, ""]] * 20])
        assert len(asked) == 1
    assert count(shown) == 1


def test_nothing_is_unpacked_before_its_signature(shown, client, monkeypatch):
    """A small token that would unpack to megabytes is refused before that, because its signature is wrong."""
    unpacked = []
    monkeypatch.setattr(signing.zlib, "decompress", unpacked.append)
    for signed in (f".{BOMB}:1abcde:x", signing.TimestampSigner(key="guessed", salt=SALT).sign(f".{BOMB}")):
        assert client.get(f"/moe/click/{signed}/").status_code == 400
        send(client, [["impression", signed]])
    assert unpacked == []


def test_token_of_another_part_of_the_site(shown, client):
    """A text that the site signed with the same key for another purpose is not a token, even in the right form."""
    fields = [str(uuid.uuid4()), Action.CLICKED.value, {"cid": "x"}, "x", "//evil.example", "evil.example", []]
    for salt in ("django.core.signing", identity.SALT, f"{SALT}.visitor", "moe_id"):
        assert client.get(f"/moe/click/{signing.dumps(fields, salt=salt)}/").status_code == 400


# Requests that cost processor time


@pytest.mark.parametrize(
    ("name", "chain", "address"),
    [
        ("X-Forwarded-For", "8.8.8.8" + ",10.0.0.1" * 63, "8.8.8.8"),
        ("X-Forwarded-For", "8.8.8.8" + ",10.0.0.1" * 64, ""),
        ("Forwarded", "for=8.8.8.8" + ", for=10.0.0.1" * 64, ""),
        ("Forwarded", "for=8.8.8.8" + ";a=b" * 200, "8.8.8.8"),
        ("Forwarded", "for=8.8.8.8" + ";a=b" * 300, ""),
    ],
)
def test_chain_of_made_up_proxies(name, chain, address):
    """A header is searched for 64 proxies. If it has more, the address is unknown."""
    request = RequestFactory().get("/", headers={name: chain}, REMOTE_ADDR="10.0.0.1")
    networks = [ip_network("10.0.0.0/8")]
    assert get_client_ip(request.META, networks, "full") == address


def test_text_that_is_long():
    """A text is cut before it is cleaned, and a user agent before it is searched."""
    assert attributes.clean_text("\x01" * 100 + "a" * 20, 20) == "a" * 20
    assert attributes.clean_text("\x01" * 200 + "a" * 20, 20) == ""
    for length, is_counted in ((400, False), (600, True)):
        request = RequestFactory().get("/", headers={"User-Agent": BROWSER.ljust(length, "x") + " Googlebot/2.1"})
        assert tracking.is_counted(request) == is_counted

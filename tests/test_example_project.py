"""The example shop with its own settings, middleware and templates, on the sandbox."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.staticfiles import finders
from django.core.management import CommandError, call_command
from django.test import Client, override_settings
from django.urls import Resolver404, clear_url_caches, resolve

from django_moe_personalize.client import get_engine
from django_moe_personalize.conf.settings import FIELDS
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.schemas import declaration
from django_moe_personalize.testing import override_personalize
from tests.conftest import Upstream, Visit
from tests.sandbox.ways import serving

EXAMPLE = Path(__file__).parents[1] / "example_project"
TAKEN_OVER = ("INSTALLED_APPS", "MIDDLEWARE", "ROOT_URLCONF", "TEMPLATES", "LOGIN_URL")
MODULES = ("settings", "urls", "shop", "workbench")
PAGES = ("/", "/category/packs/", "/product/titanium-mug/", "/cart/", "/sign-in/")
DESKTOP = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148"
NOON = {"hour": "12", "day": "Tuesday"}


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch, db: None) -> Iterator[None]:
    """Make the example the site under test, without the developer's environment and .env file."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setattr(declaration, "_schemas", [])
    # tests/browser/test_debug_toolbar.py shows the toolbar.
    with mock.patch.dict(os.environ), mock.patch("importlib.util.find_spec", return_value=None):
        monkeypatch.setattr("environ.Env.read_env", lambda *args, **kwargs: None)
        example = import_module("settings")
    options = {name: getattr(example, name) for name in TAKEN_OVER}
    with override_settings(**options), override_personalize(**example.MOE_PERSONALIZE):
        clear_url_caches()
        yield
    clear_url_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:
        del sys.modules[name]


@pytest.fixture
def client() -> Client:
    return Client(headers={"user-agent": DESKTOP})


def read(client: Client | Visit, path: str = "/", **options: object) -> str:
    """Return a page of the shop, which must be a 200."""
    response = client.get(path, **options) if isinstance(client, Client) else client(path, **options)
    assert response.status_code == 200
    return response.content.decode()


def read_title(page: str) -> str:
    return re.search(r"<h1[^>]*>(.*?)</h1>", page, re.DOTALL)[1]


def find_link(page: str, label: str) -> str:
    """Return the URL of the link with a label."""
    return re.search(rf'href="([^"]*)"[^>]*>{label}<', page)[1]


def read_totals(client: Client) -> list[str]:
    """Return the totals of the ledger: impressions, clicks, click-through rate, visitors."""
    return re.findall(r"<dd>([\d.]+)", read(client, "/ledger/").partition("</dl>")[0])


def turn(client: Client, **switches: str) -> str:
    """Set switches of the panel and return the page that follows."""
    response = client.post("/switches/", {"next": "/", **switches}, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def test_home_differs_by_campaign(visit: Visit) -> None:
    """A visitor from the email gets its hero, also on the next page without the query."""
    page = read(visit, "/?utm_medium=email")
    assert "theme-email" in page
    assert read_title(page) == "You opened it. Here is your 15 %."
    assert "theme-email" in read(visit, "/")


def test_home_differs_by_device(visit: Visit) -> None:
    """A phone gets the hero for phones."""
    page = read(visit, "/", headers={"user-agent": PHONE})
    assert read_title(page) == "Pocket-sized, like your phone"


@pytest.mark.parametrize(("hour", "theme"), [("6", "dawn"), ("12", "noon"), ("19", "dusk"), ("23", "night")])
def test_home_differs_by_hour(client: Client, hour: str, theme: str) -> None:
    """The page uses the hour that the panel sets."""
    assert f"theme-{theme}" in turn(client, hour=hour)


@pytest.mark.parametrize(
    ("username", "title"), [("ada", "Welcome back, Ada"), ("grace", "Grace, gold"), ("linus", "Linus")]
)
def test_home_differs_by_user(client: Client, username: str, title: str) -> None:
    """One click on the sign-in page greets the customer by name."""
    response = client.post("/sign-in/", {"username": username, "next": "/"}, follow=True)
    assert title in read_title(response.content.decode())
    client.post("/sign-out/")
    assert title not in read_title(read(client))


def test_visitor_keeps_the_variation() -> None:
    """A visitor always gets the same variation. Both variations occur among the visitors."""
    titles = set()
    for _ in range(16):
        client = Client(headers={"user-agent": DESKTOP})
        seen = {read_title(turn(client, **NOON)) for _ in range(3)}
        assert len(seen) == 1
        titles |= seen
    assert titles == {"Somewhere else is calling", "Adventure starts behind the bus stop"}


def test_ledger_counts_views_and_clicks_once(client: Client) -> None:
    """A repeated click counts once, and a fallback counts no impression."""
    read(client)
    page = read(client)
    for _ in range(2):
        assert client.get(find_link(page, "Shop camp|How it works")).headers["Location"] in ("/category/camp/", "/")
    read(client, "/cart/")
    found = {key: (counts.impressions, counts.clicks) for key, counts in get_engine().ledger.counts().items()}
    assert found == {"hero-banner": (2, 0), "promo-strip": (3, 1), "recommendations": (2, 0)}
    assert read_totals(client) == ["7", "1", "14.3", "1"]
    client.post("/cart/add/alpine-tent-2/")
    client.post("/cart/order/")
    assert "Nothing in it yet" in read(client, "/cart/")
    client.post("/cart/order/")
    ledger = read(client, "/ledger/")
    assert "Order placed (1)" in ledger
    assert "promo-strip" in ledger
    client.post("/ledger/clear/")
    assert "No events yet" in read(client, "/ledger/")


@pytest.mark.parametrize("path", PAGES)
def test_page_is_one_upstream_call(upstream: Upstream, visit: Visit, path: str) -> None:
    """Each page of the shop fetches all its experiences in one call."""
    read(visit, path)
    assert len(upstream.fetches) == 1
    assert "promo-strip" in upstream.fetches[0]["experience_key"]


def test_ledger_is_not_personalized(upstream: Upstream, visit: Visit) -> None:
    """The ledger makes no call and sets no visitor's cookie."""
    response = visit("/ledger/")
    assert upstream.requests == []
    assert "moe_id" not in response.cookies


def test_panel_shows_how_the_page_was_made(visit: Visit) -> None:
    """The panel shows the attributes, the experiences with their source, and the sandbox's reasons."""
    page = read(visit, "/product/titanium-mug/?utm_medium=cpc", headers={"user-agent": DESKTOP})
    expected = ["<dd>cpc</dd>", "<dd>product</dd>", "<dd>camp</dd>", "2 asked for, 2 received", "from the network"]
    assert [text for text in [*expected, "product_category is camp → matched"] if text not in page] == []
    assert "from the cache" in read(visit, "/product/titanium-mug/", headers={"user-agent": DESKTOP})


def test_panel_switches(client: Client) -> None:
    """Switches apply to the next pages too, the campaign can be removed, and a new visitor has another id."""
    assert "theme-email" in turn(client, medium="email", device="Desktop")
    assert "theme-email" in read(client)
    assert "theme-email" not in turn(client, **NOON)
    assert "Pocket-sized" in turn(client, device="Mobile")
    assert "Welcome back, Ada" in turn(client, user="ada")
    before = client.cookies["moe_id"].value
    assert "Ada, customer 1" not in turn(client, forget="1")
    assert client.cookies["moe_id"].value not in ("", before)


def test_switches_refuse_nonsense(client: Client) -> None:
    """An unknown value changes nothing, and a form redirects only to this site."""
    assert client.post("/switches/", {"device": "toaster"}).headers["Location"] == "/"
    for path in ("/switches/", "/cart/add/titanium-mug/", "/sign-out/"):
        assert client.post(path, {"next": "https://elsewhere.example/"}).headers["Location"] == "/"
    client.cookies["workbench"] = "Mobile|12|Monday:forged"
    assert "Pocket-sized" not in read(client)


def test_cart_offer_has_the_price_of_the_experience(client: Client) -> None:
    """Only a full bag gets the offer, and the price in the form doesn't count."""
    client.post("/cart/offer/", {"Price": "1"})
    assert "Nothing in it yet" in read(client, "/cart/")
    client.post("/cart/add/alpine-tent-2/")
    page = read(client, "/cart/")
    assert "data-moe-click" in page
    assert "data-moe-experience" in page
    client.post("/cart/offer/", {"Price": "1"})
    page = read(client, "/cart/")
    assert "1 × €17.00" in page
    assert "€406.00" in page
    client.post("/cart/remove/alpine-tent-2/")
    assert "Alpine Tent 2" not in re.sub(r"<ul class=\"messages.*?</ul>", "", read(client, "/cart/"), flags=re.DOTALL)


class Inspector(HTMLParser):
    """Collect the markup that a strict policy forbids, and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.forbidden.append(tag)
        self.forbidden += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        self.links |= {given[name] or "" for name in ("href", "src", "action") if name in given}


@pytest.mark.parametrize("path", [*PAGES, "/ledger/", "/no-such-page/"])
def test_page_obeys_a_strict_policy(client: Client, path: str) -> None:
    """A page of the shop has no inline style, script or handler, and uses only existing files of this site."""
    client.post("/cart/add/alpine-tent-2/")
    response = client.get(path)
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
    inspector = Inspector()
    inspector.feed(response.content.decode())
    assert inspector.forbidden == []
    assert all(re.match(r"/(?!/)|#", link) for link in inspector.links)
    files = [link.removeprefix("/static/") for link in inspector.links if link.startswith("/static/")]
    assert files
    assert [name for name in files if finders.find(name) is None] == []


def test_workspace_fits_the_shop(client: Client) -> None:
    """The shop has all links and images of the shipped workspace, and the workspace has the demo users."""
    workspace = load_workspace()
    people = import_module("shop.people").PEOPLE
    assert {str(person.pk): person.name for person in people} == {
        pk: customer["name"] for pk, customer in workspace.customers.items() if len(pk) > 1
    }
    text = (EXAMPLE.parent / "django_moe_personalize/sandbox/workspace.json").read_text(encoding="utf-8")
    paths = set(re.findall(r'"(?:CtaUrl|deeplink)": "([^"]+)"', text))
    assert len(paths) > 12
    for path in paths:
        try:
            resolve(path)
        except Resolver404:
            pytest.fail(f"the workspace links to {path}, but the shop has no such page")
        assert client.get(path).status_code == 200
    assert [name for name in re.findall(r'"image_url": "([^"]+)"', text) if finders.find(name) is None] == []


def test_env_example_names_settings() -> None:
    """Every MOE_PERSONALIZE_* in .env.example is a setting."""
    names = re.findall(r"^# MOE_PERSONALIZE_([A-Z_]+)=", (EXAMPLE / ".env.example").read_text(), re.MULTILINE)
    assert len(names) > 8
    assert set(names) <= set(FIELDS)


def test_sandbox_of_another_process(client: Client) -> None:
    """The panel and the ledger ask a sandbox behind BASE_URL, and say so if it has stopped."""
    with serving(Engine(load_workspace())) as server, override_personalize(BASE_URL=server.url):
        assert get_engine() is None
        page = read(client, "/?utm_medium=email")
        assert "utm_medium is email → matched" in page
        assert read_totals(client)[0] == "3"
        client.post("/ledger/clear/")
        assert server.engine.ledger.entries() == []
    with override_personalize(BASE_URL=server.url):
        page = read(client, "/product/titanium-mug/")
        assert "You may also like" in page
        for text in (page, read(client, "/ledger/")):
            assert f"{server.url.removesuffix('/v1')} doesn&#x27;t answer. Start it again." in text


def test_demo_says_how_to_fix_a_wrong_address() -> None:
    """The error for a port in use, or for text that is not an address, says what to write instead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CommandError, match=rf"Another program uses {address}\. .* demo 127\.0\.0\.1:\d+"):
            call_command("demo", address)
    with pytest.raises(CommandError, match=r"127\.0\.0\.1:8000"):
        call_command("demo", "shop")
    assert not get_user_model().objects.exists()


def test_demo_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """One command creates the database and the users, prints the address, serves the shop, and ends with code 0."""
    ours = ("MOE_PERSONALIZE", "DJANGO_SETTINGS_MODULE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"DATABASE_URL": f"sqlite:///{tmp_path / 'shop.sqlite3'}", "PYTHONUNBUFFERED": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(EXAMPLE.parent), environment.get("PYTHONPATH", "")])}
    command = [sys.executable, str(EXAMPLE / "manage.py"), "demo", "127.0.0.1:0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"The shop is at (http://127\.0\.0\.1:\d+/)", process.stdout.readline())[1]
            for path, expected in (("", "Fernweh"), ("sign-in/", "Grace"), ("static/shop/shop.css", ".header")):
                with urllib.request.urlopen(url + path, timeout=20) as response:
                    assert expected in response.read().decode()
        finally:
            process.send_signal(signal.SIGINT)
        assert "The shop is closed." in process.stdout.read()
    assert process.returncode == 0

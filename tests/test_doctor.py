"""``manage.py moe_doctor``: what it finds on sites that work and on sites that do not, and what it never says."""

import io
import json
import re
import socket
import sys
import time
import types
from dataclasses import replace
from datetime import timedelta
from email.utils import formatdate

import pytest
from django.core.cache import cache
from django.core.cache.backends.base import BaseCache
from django.core.management import CommandError, call_command
from django.db import connection as database
from django.test import override_settings
from django.urls import path
from django.utils import timezone

from django_moe_personalize import calls, coordination, doctor, vitals
from django_moe_personalize.alarm import TOPIC
from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.governor import SLOT_SECONDS, name_slot
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.moengage.types import Action, Event, ExperienceMeta, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.reachability import compare_keys, describe_end
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.testing import override_personalize
from tests import site
from tests.conftest import settle
from tests.loopback import Loopback
from tests.test_delivery import backend, make_events

KEY = "canary-of-the-key"
SHORT = 0.3


def diagnose(seconds=5.0):
    """Return the findings as (state, text)."""
    return [(state, f"{what} {mend}".rstrip()) for state, what, mend in doctor.diagnose(seconds=seconds)]


def find(words, found=None):
    """Return the one finding that has the words."""
    found = diagnose() if found is None else found
    matches = [finding for finding in found if words in finding[1]]
    assert len(matches) == 1, (words, found)
    return matches[0]


def of(*findings):
    """Return findings of a part as (state, text)."""
    return [(state, f"{what} {mend}".rstrip()) for state, what, mend in findings]


class Vendor:
    """The sandbox over HTTP, in which each answer may be replaced."""

    def __init__(self):
        self.engine = Engine(load_workspace())
        self.behave = self.answer
        self.headers = {}

    def answer(self, exchange):
        """Answer as MoEngage does."""
        received = exchange.received
        target, _, query = received.target.removeprefix("/v1").partition("?")
        response = self.engine.handle(Request(received.method, target, query, received.headers, received.body))
        exchange.reply(response.body, status=f"{response.status} OK", headers=self.headers)

    def fail(self, status, body=b"{}"):
        """Answer in this way from now on."""
        self.behave = lambda exchange: exchange.reply(body, status=f"{status} X")


@pytest.fixture
def vendor():
    """Have the site ask a server."""
    end = Vendor()
    with Loopback(lambda exchange: end.behave(exchange)) as server:
        workspace = end.engine.workspace
        credentials = {"WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
        with override_personalize(BASE_URL=server.url, SANDBOX=False, **credentials):
            end.server = server
            yield end


@pytest.fixture
def shared(settings, tmp_path):
    """Use a cache that processes share."""
    location = str(tmp_path / "cache")
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": location}}


# The command


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_line_a_finding(settings):
    """A site that works is told so, in plain text, and the exit code is 0."""
    settings.DEBUG = True
    settings.ROOT_URLCONF = "tests.site"
    out = io.StringIO()
    with override_personalize(SANDBOX=True):
        call_command("moe_doctor", stdout=out)
    *lines, last = out.getvalue().splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert last == "Nothing to mend, 0 to look at."
    assert "\x1b" not in out.getvalue()


def test_colours_on_a_terminal_alone(monkeypatch):
    """Django's style colours the state where somebody looks, unless told not to."""
    terminal, plain = Terminal(), Terminal()
    call_command("moe_doctor", stdout=terminal, force_color=True)
    call_command("moe_doctor", stdout=plain, no_color=True)
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in plain.getvalue()
    captured = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    call_command("moe_doctor", stdout=captured)
    monkeypatch.undo()
    assert "\x1b[" not in captured.getvalue()


def test_a_problem_is_an_error(vendor):
    """What has to be mended ends the command with an exit code of 1, after everything was said."""
    vendor.fail(401)
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 to mend") as raised:
        call_command("moe_doctor", stdout=out)
    assert raised.value.returncode == 1
    assert "problem  MoEngage refuses the credentials (401)" in out.getvalue()
    assert "ImmediateDelivery sends while the page waits" in out.getvalue()


# Settings and checks


def test_settings_that_cannot_be_read():
    """The checks say why; nothing else can be known."""
    with override_settings(MOE_PERSONALIZE={"DEADLINE": -1, "DEADLIME": 1}):
        found = diagnose()
    assert {state for state, _ in found} == {"problem"}
    assert [text.split(":")[0] for _, text in found] == ["moe_personalize.E001", "moe_personalize.E002"]


def test_credentials_that_are_missing(settings):
    """The checks name them, and the vendor is not asked."""
    with override_personalize(SANDBOX=False):
        found = diagnose()
    assert find("E003", found)[0] == "problem"
    assert find("MoEngage was not asked", found)[0] == "problem"


def test_silenced_checks_are_silent(settings):
    """What a site has decided about is not brought up again."""
    settings.DEBUG = False
    assert find("W006")[0] == "warning"
    settings.SILENCED_SYSTEM_CHECKS = ["moe_personalize.W006"]
    assert not [text for _, text in diagnose() if "W006" in text]


def test_switched_off():
    """Then nothing is asked."""
    with override_personalize(ENABLED=False):
        assert find("Personalization is off")[0] == "warning"
        assert not [text for _, text in diagnose() if "sandbox" in text and "W006" not in text]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SANDBOX": True}, "The sandbox inside each process"),
        ({"SANDBOX": True, "BASE_URL": "http://127.0.0.1:9/v1"}, "A sandbox behind BASE_URL is asked, at 127.0.0.1"),
        (
            {"DATA_CENTER": "03", "WORKSPACE_ID": "SHOP", "API_KEY": KEY},
            "data centre 03 is asked, at sdk-03.moengage.com, for the workspace SHOP.",
        ),
        (
            {"BASE_URL": "https://proxy.example/v1", "WORKSPACE_ID": "SHOP_DEBUG", "API_KEY": KEY},
            "What BASE_URL names is asked, at proxy.example, for the workspace SHOP_DEBUG, a test workspace.",
        ),
    ],
)
def test_who_is_asked(given, words):
    """Host and workspace are said, the key never."""
    with override_settings(MOE_PERSONALIZE=given):
        assert words in describe_end(get_settings())


# The vendor


def test_a_vendor_that_works(vendor):
    """How many experiences there are, and how long it took to ask."""
    found = diagnose()
    assert find("4 active, 1 paused, 1 scheduled (asked in ", found)[0] == "ok"
    state, text = find("on a new connection", found)
    assert state == "ok"
    assert "A fetch of 4 keys took" in text
    assert vendor.server.connections == 2
    fetches = [received for received in vendor.server.received if received.target.endswith("/fetch")]
    assert [json.loads(fetch.body).keys() for fetch in fetches] == [{"experience_key"}] * 2


def test_a_workspace_without_active_experiences(vendor):
    """It works and shows nothing: a warning, and nothing to fetch."""
    vendor.fail("200", b'{"metadata": {"count": 0, "experiences": []}}')
    found = diagnose()
    assert find("no active experience: none", found)[0] == "warning"
    assert not [text for _, text in found if "A fetch" in text]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"{}", "MoEngage refuses the credentials (401)"),
        (403, b"{}", "MoEngage forbids the call (403). The account may be suspended"),
        (429, b"{}", "too many requests (429)"),
        (503, b"<html>", "MoEngage itself fails (503)"),
        (
            400,
            b'{"title": "Request Error", "description": "canary"}',
            "does not know the workspace (400). Correct",
        ),
        (404, b"{}", "does not do so as MoEngage (404)"),
        (302, b"", "does not do so as MoEngage (302)"),
        (200, b"<html>canary</html>", "does not speak as MoEngage does"),
    ],
)
def test_answers_that_are_none(vendor, status, body, words):
    """Each kind is explained, with its mend, and without the vendor's own words."""
    vendor.fail(status, body)
    found = diagnose()
    assert find(words, found)[0] == "problem"
    assert "canary" not in str(found)


def test_a_vendor_that_hangs(vendor):
    """It is left alone after the deadline."""
    vendor.behave = lambda exchange: exchange.hang()
    started = time.monotonic()
    assert find(f"No answer from 127.0.0.1 within {SHORT} s", diagnose(SHORT))[0] == "problem"
    assert time.monotonic() - started < 5


def test_a_vendor_that_breaks_off(vendor):
    """Half an answer is told as such."""
    vendor.behave = lambda exchange: exchange.reset()
    assert find("No whole answer from 127.0.0.1 (TransportError)")[0] == "problem"


def test_nobody_listens():
    """A refused connection is told as such."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with override_personalize(BASE_URL=f"http://127.0.0.1:{port}/v1", SANDBOX=True):
        assert find("127.0.0.1 refuses connections")[0] == "problem"


def test_a_name_that_is_none():
    """A host that DNS does not know is told as such."""
    given = {"BASE_URL": "https://sdk.invalid/v1", "SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": KEY}
    with override_personalize(**given):
        assert find("sdk.invalid cannot be found (DNS)")[0] == "problem"


def test_certificates_that_nobody_knows(tls_ends):
    """Why TLS failed is said, and what to do behind a proxy that opens it."""
    with Loopback(lambda exchange: None, tls=tls_ends.context) as server:
        given = {"BASE_URL": server.url, "SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": KEY}
        with override_personalize(**given):
            state, text = find("No TLS with 127.0.0.1")
    assert state == "problem"
    assert "verify" in text


def test_speaking_tls_to_who_does_not():
    """A server without TLS is told as such, too."""
    with Loopback(lambda exchange: None) as server:
        # Its answer to what it takes for a request is none that TLS knows.
        server._serve = lambda connection: (connection.sendall(b"HTTP/1.1 400 X\r\n\r\n"), connection.close())
        url = server.url.replace("http:", "https:")
        with override_personalize(BASE_URL=url, SANDBOX=False, WORKSPACE_ID="SHOP", API_KEY=KEY):
            assert find("No TLS with 127.0.0.1.")[0] == "problem"


@pytest.mark.parametrize(("offset", "warned"), [(0, False), (-60, True), (60, True)])
def test_clocks_that_differ(vendor, offset, warned):
    """Events from the future are refused, so a clock that is off is worth a warning."""
    vendor.headers = {"Date": formatdate(time.time() - offset, usegmt=True)}
    found = [finding for finding in diagnose() if "clock" in finding[1]]
    assert [state for state, _ in found] == ["warning"] * warned
    assert not warned or re.search(rf"clock is [{'+' if offset > 0 else '-'}](59|60|61) s off", found[0][1])


@pytest.mark.parametrize(
    ("cold", "warm", "words"),
    [(0.4, 0.0, "first page of each process"), (0.4, 0.4, "until an answer is cached"), (0.0, 0.0, "one; a page")],
)
def test_times_beside_the_deadline(vendor, cold, warm, words):
    """What is slower than a page waits is a warning, on a new connection or on each."""

    def behave(exchange):
        if exchange.received.target.endswith("/fetch"):
            time.sleep(cold if exchange.turn == 1 else warm)
        vendor.answer(exchange)

    vendor.behave = behave
    with override_personalize(DEADLINE=0.3):
        assert find("on a new connection")[0] == ("warning" if cold else "ok")
        assert words in find("on a new connection")[1]


# The site's keys


def test_keys_of_settings_views_and_templates(settings, tmp_path):
    """Keys that are declared are found, each with the place that names it first."""
    (tmp_path / "page.html").write_text(
        '{% load moe_personalize %}{% experience "from-template" as x %}{{ x.Html|experience_html }}{% endexperience %}'
        "{% experience_value 'hero-banner' 'Title' %}{% personalize_scripts %}"
    )
    (tmp_path / "broken.html").write_text('{% load moe_personalize %}{% experience "lost" %}')
    (tmp_path / "plain.html").write_text("nothing of ours")
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [str(tmp_path)]},
        {"BACKEND": "django.template.backends.dummy.TemplateStrings"},
    ]
    settings.ROOT_URLCONF = "tests.site"
    with override_personalize(EXPERIENCES={"*": ["from-settings"]}):
        templates = doctor.read_templates()
        keys = doctor.find_keys(get_settings(), templates)
    assert keys == {
        "from-settings": 'EXPERIENCES["*"]',
        "from-template": "the template page.html",
        "hero-banner": "the view tests.site.tags",
        "promo-strip": "the view tests.site.tags",
    }
    assert templates.show_html
    assert templates.have_scripts


class Callable:
    """A view that is an object, as some decorators make it."""

    moe_experience_keys = ("from-object",)

    def __call__(self, request):
        """Answer nothing."""


@pytest.mark.parametrize(
    ("view", "keys", "name"),
    [
        (site.Method.as_view(), ["hero-banner", "promo-strip"], "tests.site.Method.get"),
        (site.ClassBased.as_view(), ["hero-banner", "promo-strip"], "tests.site.ClassBased"),
        (Callable(), ["from-object"], "tests.test_doctor.Callable"),
    ],
    ids=["method", "class", "object"],
)
def test_views_of_all_kinds_declare_keys(settings, view, keys, name):
    """A decorated method, a class with the mixin and an object name keys as a function does."""
    settings.ROOT_URLCONF = types.ModuleType("urls")
    settings.ROOT_URLCONF.urlpatterns = [path("page/", view)]
    assert doctor.find_keys(get_settings(), doctor.Templates()) == dict.fromkeys(keys, f"the view {name}")


def test_a_site_that_does_not_load(settings):
    """Django's own checks say so; here it is no reason to end."""
    settings.ROOT_URLCONF = "tests.nowhere"
    settings.TEMPLATES = [{"BACKEND": "nowhere"}]
    assert {state for state, _ in diagnose()} <= {"ok", "warning"}


def test_keys_against_the_metadata():
    """Unknown ones are a problem, with the nearest name; those that nobody gets now are a warning."""
    rows = {"hero": "active", "strip": "paused", "later": "scheduled"}
    experiences = tuple(ExperienceMeta(key, key, ExperienceStatus(status)) for key, status in rows.items())
    metadata = ExperiencesMetadata("network", experiences)
    keys = {"hero": "here", "herro": "there", "zzz": "there", "strip": "there", "later": "there"}
    found = of(*compare_keys(keys, metadata))
    assert [state for state, _ in found] == ["problem", "problem", "warning", "warning", "ok"]
    assert "no experience 'herro', which there names. Did you mean 'hero'?" in found[0][1]
    assert "create it in the dashboard as 'zzz'" in found[1][1]
    assert "'strip', which there names, is paused" in found[2][1]
    assert "Of the 5 keys that settings, views and templates name, 1 are active." in found[4][1]
    assert [state for state, _ in of(*compare_keys({}, metadata))] == ["ok"]
    assert [state for state, _ in of(*compare_keys({"zzz": "there"}, metadata))] == ["problem"]


@pytest.mark.parametrize("mode", ["visible", "web_sdk"])
def test_script_that_no_template_has(mode):
    """Where the browser counts, it needs the script."""
    with override_personalize(IMPRESSIONS=mode):
        assert find("no template has {% personalize_scripts %}: nothing is counted")[0] == "warning"
        assert of(*doctor.examine_templates(get_settings(), doctor.Templates(have_scripts=True))) == []


# The cache and the processes


def test_a_cache_that_is_shared(shared):
    """It is used, and said to be shared; nothing is left in it."""
    assert "is one that processes share" in find("The cache 'default' works")[1]


def test_a_cache_of_one_process():
    """What is lost by it is said."""
    assert "the breaker, the requests a minute" in find("The cache 'default' works, and is each process's own")[1]


class Slow(BaseCache):
    """A cache that takes its time, or forgets, as told."""

    delay, keeps, store = 0.0, True, {}

    def __init__(self, location, params):
        super().__init__(params)

    def set(self, key, value, timeout=None, version=None):
        """Take a moment."""
        time.sleep(self.delay)
        self.store.update({key: value} if self.keeps else {})

    def get(self, key, default=None, version=None):
        """Return it."""
        return self.store.get(key, default)

    def delete(self, key, version=None):
        """Forget."""
        return self.store.pop(key, None) is not None

    def clear(self):
        """Forget everything."""
        self.store.clear()


def test_caches_that_do_not_work(settings, monkeypatch):
    """A slow one, one that forgets, one that fails and one that hangs: each is told, and the rest is examined."""
    settings.CACHES = {"default": {"BACKEND": "tests.test_doctor.Slow"}}
    monkeypatch.setattr(Slow, "delay", 0.05)
    with override_personalize(DEADLINE=0.01, SANDBOX=True):
        assert find("longer than a page may wait")[0] == "warning"
    monkeypatch.setattr(Slow, "keeps", False)
    assert find("did not give back what was stored")[0] == "problem"
    monkeypatch.setattr(Slow, "delay", 1.0)
    assert find("The cache: no answer in time", diagnose(SHORT))[0] == "problem"
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    found = diagnose()
    assert find("The cache: NotImplementedError", found)[0] == "problem"
    assert "secret-host" not in str(found)


def test_caches_of_which_the_checks_speak(settings):
    """A dummy and an unknown alias are the checks' findings, and are not repeated."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert len([text for _, text in diagnose() if "keeps nothing" in text]) == 1
    assert of(*vitals.examine_cache(get_settings())) == []
    with override_personalize(CACHE="nowhere"):
        assert of(*vitals.examine_cache(get_settings())) == []


def test_processes_that_share_nothing():
    """Where there is nothing to read, it is said where to look."""
    assert find("in their logs alone")[0] == "ok"


def test_processes_that_are_well(shared):
    """A breaker that has closed again is no finding."""
    coordination.put_up_notice(calls.BREAKER_TOPIC, state="closed", reason="the probe was answered")
    coordination.put_up_notice(TOPIC, missed={}, stalled=False)
    found = diagnose()
    assert find("No process has reported", found)[0] == "ok"
    assert find("10,000 requests a minute at most 0 are taken", found)[0] == "ok"


def test_processes_that_are_not(shared):
    """What breakers and alarms have put up is said, with the process and its age."""
    for _ in range(5):
        calls.get_breaker().failure()
    settle()
    coordination.put_up_notice(TOPIC, missed={"hero": 300}, stalled=True)
    found = diagnose()
    state, text = find("The breaker of ", found)
    assert state == "warning"
    assert "was open 0 s ago: 5 failures in a row." in text or "was open 1 s ago" in text
    assert find("Experience 'hero' was rendered on 300 pages at least", found)[0] == "problem"
    assert find("recorded events and saw none delivered", found)[0] == "problem"


def test_requests_of_the_minute(shared):
    """What all processes have taken of the workspace's limit is said, and warned of near its end."""
    slot = int(time.time() // SLOT_SECONDS)
    for number in range(12):
        coordination.add_to_count(name_slot(slot - number), 5000, 60.0)
    state, text = find("requests a minute at most")
    assert state == "warning"
    assert f"{12 * (10_000 // 13):,} are taken" in text


# The delivery


@pytest.mark.parametrize(
    ("name", "debug", "state", "words"),
    [
        ("thread.ThreadDelivery", False, "ok", "delivers in each serving process, where its counts live"),
        ("immediate.ImmediateDelivery", False, "ok", "sends while the page waits"),
        ("dummy.DummyDelivery", False, "warning", "sends nothing. Leave DELIVERY"),
        ("dummy.DummyDelivery", True, "ok", "sends nothing."),
    ],
)
def test_deliveries(settings, name, debug, state, words):
    """It is said where the counts live."""
    settings.DEBUG = debug
    with override_personalize(SANDBOX=True, DELIVERY=backend(name)):
        assert find(words)[0] == state


def test_a_delivery_that_cannot_be_made():
    """The mistake in the options is told."""
    with override_personalize(DELIVERY=backend("immediate.ImmediateDelivery", timeout=-1, nonsense=1)):
        assert find("The delivery: ")[0] == "problem"


class Queued(QueuedDelivery):
    """A queue that takes nothing."""

    def __init__(self, *, fallback=None):
        super().__init__(fallback=fallback, timeout=1, max_attempts=1, backoff=1, max_backoff=1, pause=1)


def test_a_queue_and_its_fallback():
    """Both are examined."""
    fallback = backend("immediate.ImmediateDelivery")
    for options in ({}, {"fallback": fallback}):
        with override_personalize(DELIVERY={"BACKEND": "tests.test_doctor.Queued", "OPTIONS": options}):
            found = diagnose()
            assert find("hands events to a queue", found)[0] == "ok"
            assert len([text for _, text in found if "ImmediateDelivery" in text]) == len(options)


@pytest.fixture
def outbox(settings, db):
    """Deliver from an outbox."""
    with override_personalize(DELIVERY=backend("database.DatabaseDelivery")):
        yield get_delivery().outbox


def test_an_outbox_that_works(outbox):
    """Its books are those of all processes."""
    get_delivery().record(make_events(3))
    get_delivery().drop(1, "overflow")
    found = diagnose()
    assert find("The outbox in the database 'default': 3 events accepted, 0 delivered, 3 pending", found)[0] == "ok"
    assert not [state for state, text in found if "pending event" in text]


def test_an_outbox_that_nobody_empties(outbox):
    """The oldest event's age tells that no deliverer runs, or that it gets nowhere."""
    get_delivery().record(make_events(2))
    outbox.rows.update(created_at=timezone.now() - timedelta(minutes=45))
    state, text = find("The oldest pending event has waited for 45 minutes; no deliverer has one of them now.")
    assert state == "problem"
    assert "moe_deliver --watch" in text
    outbox.rows.update(lease="0" * 32, due_at=timezone.now() + timedelta(minutes=1))
    assert find("a deliverer has 2 of them at this moment")[0] == "problem"
    outbox.rows.update(created_at=timezone.now())
    assert find("A deliverer has 2 events at this moment")[0] == "ok"


def test_an_outbox_with_parked_events(outbox):
    """What MoEngage refused waits for somebody to look at it."""
    get_delivery().record(make_events(2))
    outbox.rows.update(state=OutboxEvent.State.REFUSED)
    found = diagnose()
    assert find("2 events are parked", found)[0] == "warning"
    assert "2 dropped (refused)" in find("The outbox in", found)[1]


def test_an_outbox_without_tables(outbox):
    """Who forgot to migrate is told."""
    with database.cursor() as cursor:
        cursor.execute("ALTER TABLE moe_personalize_outboxevent RENAME TO elsewhere")
    try:
        assert find("has no outbox, so every event is lost. Run `manage.py migrate --database default`")[0] == "problem"
    finally:
        with database.cursor() as cursor:
            cursor.execute("ALTER TABLE elsewhere RENAME TO moe_personalize_outboxevent")


def test_a_database_that_fails(settings):
    """Where the database cannot be asked the command goes on; the exception's text may hold a password."""
    with override_personalize(DELIVERY=backend("database.DatabaseDelivery")):
        found = diagnose()
    assert find("The delivery: RuntimeError.", found)[0] == "problem"


# What is installed


def install(folder, name, version):
    """Put a distribution's metadata into a folder."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_an_environment_that_is_well(monkeypatch):
    """Nothing is said of what is right."""
    assert of(*vitals.examine_environment(shows_html=False)) == []


def test_an_environment_that_breaks_things(tmp_path, monkeypatch):
    """Another urllib3 in its place, an old one, and HTML that nothing cleans."""
    install(tmp_path, "niquests", "3.14.0")
    install(tmp_path, "urllib3", "1.26.20")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nh3", None)
    found = of(*vitals.examine_environment(shows_html=True))
    assert [state for state, _ in found] == ["warning"] * 3
    assert [text.split()[0] for _, text in found] == ["niquests", "urllib3", "A"]
    assert "1.26.20" in found[1][1]


# Secrets


def test_nothing_secret_is_said(shared, outbox, vendor):
    """Neither key nor customer nor content, whatever is asked and fails."""
    with override_personalize(API_KEY=KEY, DELIVERY=backend("database.DatabaseDelivery")):
        event = Event(Action.SHOWN, "canary-of-a-customer", {"cid": "canary-of-content"}, 1)
        get_delivery().record([event, replace(event, event_uuid=make_events(1)[0].event_uuid)])
        cache.set("canary", "canary")
        body = b'{"title": "canary", "description": "canary-of-a-customer"}'
        for status in (200, 400, 401, 500):
            vendor.fail(status, body)
            out = io.StringIO()
            with pytest.raises(CommandError) as raised:
                call_command("moe_doctor", stdout=out)
            assert "canary" not in out.getvalue() + str(raised.value)
            assert "problem" in out.getvalue()

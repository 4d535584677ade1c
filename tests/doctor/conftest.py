"""The sites that the doctor examines, and its findings."""

import time

import pytest

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor import report
from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.testing import override_personalize
from tests.loopback import Loopback

KEY = "canary-of-the-key"
SHORT = 0.3


def build_backend(name, **options):
    return {"BACKEND": f"django_moe_personalize.delivery.{name}", "OPTIONS": options}


def record_events(count):
    now = int(time.time() * 1000)
    get_delivery().record([Event(Action.SHOWN, f"canary-{number}", {"cid": "canary"}, now) for number in range(count)])


@pytest.fixture(autouse=True)
def database(db):
    """The doctor looks for tables."""


def as_pairs(findings):
    findings = list(findings)
    assert all(finding.id for finding in findings)
    return [(state, f"{what} {fix}".rstrip()) for state, what, fix, _ in findings]


def diagnose(seconds=5.0):
    return as_pairs(report.diagnose(seconds=seconds))


def find(words, found=None):
    """Return the one finding that contains the words."""
    found = diagnose() if found is None else found
    matches = [finding for finding in found if words in finding[1]]
    assert len(matches) == 1, (words, found)
    return matches[0]


class Vendor:
    """The sandbox over HTTP. A test may replace its answers."""

    def __init__(self):
        self.engine = Engine(load_workspace())
        self.behave = self.answer
        self.headers = {}

    def answer(self, exchange):
        received = exchange.received
        target, _, query = received.target.removeprefix("/v1").partition("?")
        response = self.engine.handle(Request(received.method, target, query, received.headers, received.body))
        exchange.reply(response.body, status=f"{response.status} OK", headers=self.headers)

    def fail(self, status, body=b"{}"):
        self.behave = lambda exchange: exchange.reply(body, status=f"{status} X")


@pytest.fixture
def vendor():
    end = Vendor()
    with Loopback(lambda exchange: end.behave(exchange)) as server:
        workspace = end.engine.workspace
        credentials = {"WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
        with override_personalize(BASE_URL=server.url, SANDBOX=False, **credentials):
            end.server = server
            yield end


@pytest.fixture
def outbox(db):
    with override_personalize(DELIVERY=build_backend("database.DatabaseDelivery")):
        yield get_delivery().outbox


@pytest.fixture
def shared_cache(settings, tmp_path):
    """Let the site's processes share a cache."""
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path / "cache")}}

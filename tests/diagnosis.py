"""What the doctor finds, as tests read it, and the sites that it examines."""

import pytest

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor import report
from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.testing import override_personalize
from tests.loopback import Loopback
from tests.delivery.events import backend

KEY = "canary-of-the-key"
SHORT = 0.3


def diagnose(seconds=5.0):
    """Return the findings as (state, text)."""
    return [(state, f"{what} {mend}".rstrip()) for state, what, mend in report.diagnose(seconds=seconds)]


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


@pytest.fixture(name="vendor")
def ask_vendor():
    """Have the site ask a server."""
    end = Vendor()
    with Loopback(lambda exchange: end.behave(exchange)) as server:
        workspace = end.engine.workspace
        credentials = {"WORKSPACE_ID": workspace.workspace_id, "API_KEY": workspace.api_key}
        with override_personalize(BASE_URL=server.url, SANDBOX=False, **credentials):
            end.server = server
            yield end


@pytest.fixture(name="outbox")
def use_outbox(settings, db):
    """Deliver from an outbox."""
    with override_personalize(DELIVERY=backend("database.DatabaseDelivery")):
        yield get_delivery().outbox

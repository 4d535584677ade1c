"""Django's own error reports (the DEBUG page, the mail to ADMINS) show no data that the package holds."""

import json
import logging

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError
from django.test import AsyncClient, Client
from django.utils.log import AdminEmailHandler
from django.views.debug import ExceptionReporter

from django_moe_personalize import rendering
from django_moe_personalize.client import get_client
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from tests.security.canary_values import ADDRESS, AGENT, CAMPAIGN, CART, CUSTOMER, MAIL, PASSWORD, PERSONAL, SECRET
from tests.security.failing import VIEWS
from tests.security.test_counts import read_tokens
from tests.security.test_traces import find, is_ours

OURS_ALONE = (CUSTOMER, MAIL, CART, SECRET)
"""The canaries that Django doesn't print with the request and its cookies, for a page without a query."""


class Mails(AdminEmailHandler):
    """Keep the mails and their errors instead of sending them."""

    def __init__(self):
        super().__init__(include_html=True)
        self.sent = []
        self.errors = []

    def emit(self, record):
        if not record.exc_info:
            return
        self.errors.append(record.exc_info[1])
        super().emit(record)

    def send_mail(self, subject, message, *args, html_message=None, **kwargs):
        self.sent += [f"{subject} {message}", html_message]


@pytest.fixture
def mails():
    handler, logger = Mails(), logging.getLogger("django.request")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def site(site, settings):
    """Serve failing pages."""
    settings.ROOT_URLCONF = "tests.security.failing"
    return site


def enter(asks_async=False):
    options = {"headers": {"User-Agent": AGENT}, "REMOTE_ADDR": ADDRESS}
    return (AsyncClient if asks_async else Client)(raise_request_exception=False, **options)


def read_frames(error):
    """Return the local variables of the package's frames, as reports print them with DEBUG off."""
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
    frames = [frame for frame in reporter.get_traceback_data()["frames"] if is_ours(frame)]
    return {f"{f['function']} {name}": str(value) for f in frames for name, value in f["vars"]}


def check(mails):
    """Check the text and HTML of the mails, and the package's frames in them."""
    assert mails.sent
    assert find(dict(enumerate(mails.sent)), OURS_ALONE) == []
    for error in mails.errors:
        assert find(read_frames(error), (*PERSONAL, SECRET)) == []


@pytest.mark.parametrize("name", VIEWS)
def test_reports_of_a_failing_page(site, mails, settings, monkeypatch, name):
    """The view, a tag or a call of the package fails, and the report shows no personal data."""
    client = enter()
    client.get(f"/read/?utm_source={CAMPAIGN}")
    assert CAMPAIGN in str(site.requests[-1].body), "MoEngage gets the data"
    if name in ("in_api", "in_erasing"):
        site.refuse()
        monkeypatch.setattr(BaseDelivery, "erase", _refuse)
    assert client.get(f"/{name}/").status_code == 500
    check(mails)
    settings.DEBUG = True
    page = client.get(f"/{name}/").content.decode()
    assert "Traceback" in page
    # On the DEBUG page Django shows the arguments of the API.
    canaries = (SECRET,) if name in ("in_api", "in_erasing") else OURS_ALONE
    assert find({"page": page}, canaries) == []


def _refuse(self, customer_id):
    raise OperationalError("the database is gone")


@pytest.mark.parametrize("name", ["after_reading_async", "in_experience"])
def test_reports_of_a_failing_page_over_asgi(site, mails, name):
    """Frames of the event loop show no personal data either."""
    client = enter(asks_async=True)
    async_to_sync(client.get)(f"/aread/?utm_source={CAMPAIGN}")
    assert async_to_sync(client.get)(f"/{name}/").status_code == 500
    check(mails)


@pytest.mark.parametrize("part", ["seal_response", "add_server_timing"])
def test_reports_of_our_own_failure(site, mails, monkeypatch, part):
    """If the package itself fails after the view, the report shows no personal data."""
    monkeypatch.setattr(rendering, part, _break)
    # Otherwise only staff get Server-Timing.
    monkeypatch.setattr(get_runtime(), "is_debug", True)
    client = enter()
    assert client.get("/tags/").status_code == 500
    check(mails)


@pytest.mark.parametrize("path", ["/moe/beacon/", "/moe/click/"])
def test_reports_of_a_failing_endpoint(site, mails, monkeypatch, path):
    """If an endpoint fails, the report doesn't show the visitor."""
    client = enter()
    with override_personalize(IMPRESSIONS="visible"):
        mark, link = read_tokens(client)
    monkeypatch.setattr("django_moe_personalize.tracking.record", _break)
    if path == "/moe/beacon/":
        response = client.post(path, f'{{"events": [["impression", "{mark}"]]}}', "text/plain")
    else:
        response = client.get(f"{path}{link}/")
    assert response.status_code == 500
    check(mails)


def _break(*args, **kwargs):
    raise RuntimeError("ours")


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "told",
    [
        {"DEADLINE": "soon"},
        {"WORKSPACE_ID": "a:b"},
        {"API_KEY": f"{SECRET} and more"},
        {"API_KEY": [SECRET]},
        {"TRANSPORT": {"OPTIONS": {"proxies": {"https": f"socks5://u:{PASSWORD}@proxy"}}}},
        {"TRANSPORT": {"OPTIONS": {"proxy": f"http://u:{PASSWORD}@proxy"}}},
        {"BASE_URL": f"https://u:{PASSWORD}@proxy.example/v1"},
        {"DELIVERY": {"OPTIONS": {"broker": f"redis://:{PASSWORD}@redis"}}},
        {"DELIVERY": {"OPTIONS": {"max_events": 0}}},
    ],
    ids=lambda told: next(iter(told)),
)
def test_reports_of_a_mistake_in_the_settings(settings, told, debug):
    """No frame and no message of the package shows the key or a password."""
    settings.DEBUG = debug
    settings.MOE_PERSONALIZE = {"WORKSPACE_ID": "W", "API_KEY": SECRET, "DATA_CENTER": "03", **told}
    errors = []
    for ask in (get_settings, get_client, get_delivery):
        try:
            ask()
        except ConfigurationError as error:
            errors.append(error)
    assert errors
    for error in errors:
        shown = read_frames(error) | {"message": str(error)}
        assert len(shown) > 1
        assert find(shown, (SECRET, PASSWORD)) == []


def test_settings_in_a_report(settings):
    """Django hides the key in the settings that it prints, but shows the options of a transport."""
    settings.MOE_PERSONALIZE = {
        "API_KEY": SECRET,
        "TRANSPORT": {"OPTIONS": {"proxies": {"https": f"http://u:{PASSWORD}@proxy"}}},
    }
    for report in write_reports():
        assert SECRET not in report
        # The threat model says how to hide it.
        assert PASSWORD in report


def test_password_of_a_proxy_in_the_environment(settings, monkeypatch):
    """Django doesn't print options from the environment."""
    options = {"proxies": {"https": f"http://u:{PASSWORD}@p"}}
    monkeypatch.setenv("MOE_PERSONALIZE_TRANSPORT", json.dumps({"OPTIONS": options}))
    settings.MOE_PERSONALIZE = {"WORKSPACE_ID": "W", "API_KEY": SECRET, "DATA_CENTER": "03"}
    assert PASSWORD in str(get_settings().transport.options)
    assert find(dict(enumerate(write_reports())), (SECRET, PASSWORD)) == []


def write_reports():
    """Return Django's report of an error as HTML and as text."""
    reporter = ExceptionReporter(None, RuntimeError, RuntimeError("x"), None)
    return reporter.get_traceback_html(), reporter.get_traceback_text()

"""The site answers every request quickly, and sends MoEngage only bodies that follow the contract."""

import functools
import json
import logging
import re

import jsonschema
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from django_moe_personalize import views
from django_moe_personalize.moengage.types import Action
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import load_workspace
from django_moe_personalize.testing import override_personalize
from tests.security.costs import LIMIT, Meter, untraced
from tests.security.requests import PATHS, Generator, ask_asgi, ask_wsgi


def closed(properties, *, optional=(), **more):
    """Return the schema of an object with these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


LINE = {"type": "string", "minLength": 1, "pattern": "^[^\\x00-\\x1f\\x7f\\ud800-\\udfff]*$"}
FETCH = closed(
    {
        "identifiers": closed({"customer_id": LINE | {"maxLength": 256}}),
        "experience_key": {"type": "array", "items": LINE, "minItems": 1, "maxItems": 25, "uniqueItems": True},
        "DAY_OF_THE_WEEK": {"type": "string", "pattern": "^(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day$"},
        "TIME_OF_THE_DAY": {"type": "string", "pattern": "^([01][0-9]|2[0-3])$"},
        "USER_IP_ADDRESS": {"type": "string", "pattern": "^[0-9a-f.:]+$"},
        "USER_AGENT": LINE | {"maxLength": 512},
    },
    optional=("identifiers", "USER_IP_ADDRESS", "USER_AGENT"),
    patternProperties={"^utm_(source|medium|campaign|term|content)$": LINE | {"maxLength": 256}},
)
CONTEXT = ["cid", "experience", "moe_locale_id", "moe_variation_id", "audience_name", "audience_id"]
UUID4 = "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
ACTION = closed(
    {
        "action": {"enum": [Action.SHOWN.value, Action.CLICKED.value]},
        "moe_event_uuid": {"type": "string", "pattern": UUID4},
        "event_time": {"type": "integer"},
        "platform": {"const": "web"},
        "attributes": {"type": "object", "required": CONTEXT},
    }
)
ELEMENT = closed({"customer_id": LINE, "actions": {"type": "array", "items": ACTION, "minItems": 1}})
EVENTS = closed({"elements": {"type": "array", "minItems": 1, "maxItems": 100, "items": ELEMENT}})
SCHEMAS = {"/experiences/fetch": FETCH, "/experiences/events": EVENTS}


@pytest.fixture
def site(upstream, handlers, settings, monkeypatch):
    """Serve the test site without a database."""
    settings.ROOT_URLCONF = "tests.site"
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)
    upstream.statuses = []

    def answer(request):
        response = upstream._sandbox.send(request, deadline=Deadline(10))
        upstream.statuses.append(response.status)
        return response

    upstream.answer = answer
    # One visitor sends thousands of reports in a minute, and none of them should be left out.
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 1_000_000)
    return upstream


def learn(generator, answers):
    for _, headers, body in answers:
        text = "".join(f"{name}: {value}\n" for name, value in headers)
        generator.cookies += re.findall(r"moe_id=([\w:.-]+)", text)
        generator.tokens += re.findall(
            r"(?:/moe/click/|data-moe-experience=\")([\w:.-]+)", body.decode("utf-8", "replace")
        )
    generator.own = generator.own or generator.cookies[0]
    for known in (generator.cookies, generator.tokens):
        del known[:-50]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("server", "impressions"), [("wsgi", "render"), ("asgi", "visible")])
def test_no_request_breaks_the_site_or_the_contract(site, server, impressions, extent, tell):
    """No request is slow or a 500, no redirect leaves the site, and all bodies for MoEngage follow the contract."""
    generator, meter = Generator(2026), Meter()
    site.answer = meter.set_aside(site.answer)

    def ask(*requests):
        # A handler loads the middleware once, and the meter also asks a site that doesn't have the package's.
        handler = {"wsgi": WSGIHandler, "asgi": ASGIHandler}[server]()
        if server == "asgi":
            return ask_asgi(handler, requests, meter)
        return [ask_wsgi(handler, request, meter) for request in requests]

    total, statuses = 0, {}
    wanted = extent({"wsgi": 2000, "asgi": 700}[server], 50_000)
    proxies = ["9.9.9.0/24", "10.0.0.0/8"]
    with untraced(), override_personalize(TRUSTED_PROXIES=proxies, IMPRESSIONS=impressions):
        while total < wanted:
            good = [
                ("GET", path, "utm_source=x", {"Cookie": f"moe_id={generator.own}", "Host": "testserver"}, b"")
                for path in PATHS
            ]
            requests = [*good, *(generator.build() for _ in range(200))]
            answers = ask(*requests)
            learn(generator, answers)
            for request, (status, headers, _) in zip(requests, answers, strict=True):
                statuses[status] = statuses.get(status, 0) + 1
                assert status < 500, request
                assert all(v.startswith("/") and not v.startswith("//") for n, v in headers if n == "Location"), request
            check_upstream(site)
            for request, cost in zip(requests, meter.costs[-len(requests) :], strict=True):
                assert cost <= LIMIT or meter.find_excess(functools.partial(ask, request)) <= LIMIT, request
            total += len(requests)
    tell(f"{server}: {total} requests, {dict(sorted(statuses.items()))}, {meter.describe()}")
    assert {200, 204, 302, 400, 405} <= statuses.keys()


def check_upstream(upstream):
    """Check the bodies for MoEngage since the last call, against the contract and the sandbox."""
    # A new sandbox each time, because it gets slower with every visitor.
    upstream._sandbox = SandboxTransport(Engine(load_workspace()))
    bodies = [(request.path, json.loads(request.body)) for request in upstream.requests if request.body]
    upstream.requests.clear()
    for path, body in bodies:
        jsonschema.Draft202012Validator(SCHEMAS[path]).validate(body)
    assert set(upstream.statuses) == {200}

"""Secrets and personal data don't get into logs, error reports, caches, cache keys or reprs."""

import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from traceback import walk_tb
from types import SimpleNamespace

import pytest
from django.core.cache import cache as site_cache
from django.test import Client, RequestFactory
from django.views.debug import ExceptionReporter

from django_moe_personalize import api, signals
from django_moe_personalize.client import get_client
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.exceptions import APIError, TransportError
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.models import OutboxCounter, OutboxEvent
from django_moe_personalize.moengage.transport import Response
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor.identity import Consent, Identity
from tests.error_reports import describe_report
from tests.security.canary_values import ADDRESS, AGENT, CAMPAIGN, CART, CUSTOMER, MAIL, PERSONAL, SECRET

HERE = "tests.security.test_traces"


def identify(request):
    return Identity(CUSTOMER, {"u_em": MAIL})


def identify_wrongly(request):
    raise LookupError(f"{CUSTOMER} {MAIL} {ADDRESS}")


def describe_cart(request):
    return {"cart": CART}


def describe_wrongly(request):
    raise ValueError(CART)


def deny(request):
    return Consent(fetch=False, identify=False, track=False)


def only_fetch(request):
    return Consent(fetch=True, identify=False, track=False)


class Log(logging.Handler):
    """Keep every line with its arguments and tracebacks."""

    def __init__(self):
        super().__init__(level=0)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.getMessage()} {record.args!r} {record.exc_info!r} {vars(record)!r}")


@pytest.fixture
def log(caplog):
    """Collect the lines of the package's logger at all levels."""
    handler, logger = Log(), logging.getLogger("django_moe_personalize")
    logger.addHandler(handler)
    with caplog.at_level(logging.DEBUG, logger.name):
        yield handler.lines
    logger.removeHandler(handler)


def browse(client=None):
    """Visit pages, some of which fail, and send bad reports. Return the answers."""
    client = client or Client(raise_request_exception=False)
    options = {"headers": {"User-Agent": AGENT}, "REMOTE_ADDR": ADDRESS}
    paths = ("/tags/", "/read/", "/panel/", "/streaming/", "/missing/", "/failing/", "/one-by-one/", "/method/")
    answers = [client.get(f"{path}?utm_source={CAMPAIGN}", **options) for path in paths]
    answers += [client.post("/method/", **options), client.post("/moe/beacon/", "{", "text/plain", **options)]
    answers.append(client.get("/moe/click/nonsense/", **options))
    return answers


def find(places, canaries=PERSONAL):
    """Return the places that have a canary, with the canary."""
    return [(place, canary) for place, text in places.items() for canary in canaries if canary in text]


def read_cache():
    return {key: repr(pickle.loads(value)) for key, value in site_cache._cache.items()}


@pytest.mark.parametrize("upstream_fails", [None, "refuse", 400, 401, 429, 500, "garbage"], ids=str)
def test_logs_and_caches_name_nobody(site, log, upstream_fails):
    """No log line and no cache entry names the visitor, even if MoEngage fails and quotes the request."""
    said = json.dumps({"title": "Error", "description": " ".join((*PERSONAL, SECRET))}).encode()
    if upstream_fails == "refuse":
        site.refuse()
    elif upstream_fails == "garbage":
        site.respond(200, said)
    elif upstream_fails:
        site.respond(upstream_fails, said)
    browse()
    assert CUSTOMER in str(site.requests[-1].body), "MoEngage gets the data"
    everything = read_cache()
    session = {key: everything.pop(key) for key in list(everything) if "sessions" in key}
    assert find({f"log {n}": line for n, line in enumerate(log)}, (*PERSONAL, SECRET)) == []
    assert find({f"cache {key}": f"{key} {value}" for key, value in everything.items()}, (*PERSONAL, SECRET)) == []
    # The session has the campaign, as the privacy page says, and nothing else.
    assert {canary for _, canary in find(session, (*PERSONAL, SECRET))} <= {CAMPAIGN}
    memory = get_cache().memory
    local = repr([*memory._new, *memory._returning, *(bundle.answers for bundle in memory._bundles.values())])
    assert find({"memory": local}, (*PERSONAL, SECRET)) == []


@pytest.mark.parametrize("broken", ["IDENTIFY", "ATTRIBUTES"])
def test_errors_of_the_sites_own_functions_are_not_quoted(site, log, broken):
    """The text of a function's exception isn't logged, because it may quote the visitor."""
    wrong = {"IDENTIFY": f"{HERE}.identify_wrongly", "ATTRIBUTES": [f"{HERE}.describe_wrongly"]}
    with override_personalize(**{broken: wrong[broken]}):
        browse()
    assert log
    assert find({f"log {n}": line for n, line in enumerate(log)}, (*PERSONAL, SECRET)) == []


def test_error_reports_show_nothing_of_ours(site):
    """A mailed error report with include_html has no data from the package's frames and settings."""
    errors = []
    signals.fetch_failed.connect(lambda sender, error, **kwargs: errors.append(error), weak=False, dispatch_uid="t")
    try:
        site.refuse()
        with pytest.raises(TransportError) as raised:
            api.fetch_experiences(["hero-banner"], customer_id=CUSTOMER, attributes={"cart": CART})
        errors.append(raised.value)
        browse()
    finally:
        signals.fetch_failed.disconnect(dispatch_uid="t")
    assert errors
    # Django itself shows the address, the user agent and the cookies of the request. Search for the rest.
    ours = (CUSTOMER, MAIL, CART, SECRET)
    for error in errors:
        reporter = ExceptionReporter(RequestFactory().get("/"), type(error), error, error.__traceback__)
        frames = {
            f"{frame['filename']}:{frame['function']} {name}": str(value)
            for frame in reporter.get_traceback_data()["frames"]
            if is_ours(frame)
            for name, value in frame["vars"]
        }
        assert find(frames, ours) == []
        assert find({"report": describe_report(error)}, (SECRET, MAIL)) == []


@pytest.mark.parametrize("upstream_fails", ["refuse", 400], ids=str)
def test_reporters_that_open_collections_find_nothing_of_ours(site, upstream_fails):
    """Some error reporters write out the parts of tuples and mappings, and not their reprs."""
    site.refuse() if upstream_fails == "refuse" else site.respond(400, CUSTOMER.encode())
    with pytest.raises(APIError) as raised:
        get_client().fetch_experiences(["hero-banner"], customer_id=CUSTOMER, deadline=Deadline(5.0))
    assert CUSTOMER in str(site.requests[-1].body)
    frames = [frame for frame, _line in walk_tb(raised.value.__traceback__)][1:]
    assert find({frame.f_code.co_name: write_out(frame.f_locals) for frame in frames}, (CUSTOMER, "Basic")) == []


def write_out(value):
    """Return the text of a reporter that writes out every collection."""
    if isinstance(value, Mapping):
        return "".join(f"{name!r}: {write_out(part)} " for name, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return " ".join(write_out(part) for part in value)
    return repr(value)


def is_ours(frame):
    return "django_moe_personalize" in frame["filename"]


def test_reprs_name_nobody(site):
    """The package's objects show no personal data in a traceback or a debugger."""
    client = Client()
    response = client.get("/tags/", headers={"User-Agent": AGENT}, REMOTE_ADDR=ADDRESS)
    personalization = response.wsgi_request.personalization
    page = personalization._page
    answers = page._answers.values()
    assert None not in answers
    shown = [personalization, page, personalization.identity, personalization.consent, page.tracker, page.visitor]
    shown += [*answers, get_delivery(), *site.requests]
    assert find({type(value).__name__: repr(value) for value in shown}, (*PERSONAL, SECRET)) == []


@pytest.mark.parametrize("consent", ["deny", "only_fetch", "gpc"])
@pytest.mark.parametrize("signed_in", [True, False])
def test_without_consent_no_identifier_goes_anywhere(site, log, consent, signed_in, django_assert_num_queries):
    """Without consent, no identifier is sent, or stored in a cookie, the session, the cache or the log."""
    client = Client(raise_request_exception=False, headers={"Sec-GPC": "1"} if consent == "gpc" else {})
    told = {} if consent == "gpc" else {"CONSENT": f"{HERE}.{consent}"}
    told |= {"ATTRIBUTES": []} | ({} if signed_in else {"IDENTIFY": ""})
    with override_personalize(**told):
        answers = browse(client)
    wire = "".join(str(request.body) for request in site.requests)
    headers = "".join(f"{answer.headers}{answer.cookies.output()}" for answer in answers)
    # The campaign of the page and the user agent aren't identifiers. Without fetch they aren't sent either.
    identifiers = (CUSTOMER, MAIL, ADDRESS, "anon-", "moe_id")
    identifiers += (CAMPAIGN, AGENT) if consent == "deny" else ()
    assert find({"wire": wire, "headers": headers, "cache": repr(read_cache())}, identifiers) == []
    assert find({"log": "".join(log)}, (*PERSONAL, "anon-")) == []
    assert "identifiers" not in wire
    assert "/experiences/events" not in {request.path for request in site.requests}
    assert not client.cookies
    assert (wire == "") == (consent == "deny")


def test_events_on_their_way_are_in_memory_alone(site, log):
    """A delivery that fails doesn't log the visitors of its events."""
    delivery = {"BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery", "OPTIONS": {"exit_timeout": 0.05}}
    site.answer = lambda request: Response(500, {}, CUSTOMER.encode())
    with override_personalize(DELIVERY=delivery):
        hero = SimpleNamespace(experience_context={"cid": "x"}, offerings=(), experience_key="hero")
        api.experience_clicked(hero, customer_id=CUSTOMER)
        get_delivery().flush(timeout=0.2)
    assert log
    assert find({"log": "".join(log)}, (*PERSONAL, SECRET)) == []


@pytest.mark.django_db
def test_outbox_holds_what_is_sent_and_nothing_else(site, log):
    """The customer id is only in the body of a row, which is sent. After an erasure no row is left."""
    delivery = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
    with override_personalize(DELIVERY=delivery):
        browse()
        said = json.dumps({"title": "Error", "description": f"{CUSTOMER} is unknown"}).encode()
        site.respond(400, said)
        get_delivery().flush(timeout=10)
        rows = [vars(row) for row in OutboxEvent.objects.all()]
        assert rows
        assert all(CUSTOMER in row.pop("body") for row in rows)
        assert find({"rows": repr(rows), "log": "".join(log)}, (*PERSONAL, SECRET)) == []
        assert find({"counters": repr(list(OutboxCounter.objects.values()))}, PERSONAL) == []
        bodies = "".join(row.body for row in OutboxEvent.objects.all())
        assert {canary for _, canary in find({"bodies": bodies}, (*PERSONAL, SECRET))} == {CUSTOMER}
        assert api.erase(customer_id=CUSTOMER) == len(rows)
        assert not OutboxEvent.objects.exists()

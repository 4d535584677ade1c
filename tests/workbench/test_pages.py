"""The pages of the sandbox: what they show, and who may open them and send their forms."""

import dataclasses
import uuid

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.sandbox.faults import Faults
from django_moe_personalize.sandbox.server import MAX_READ
from django_moe_personalize.workbench.faults import PRESETS
from tests.sandbox.test_conversions import call, order
from tests.sandbox.test_conversions import report as report_order
from tests.sandbox.ways import API_KEY, CONTEXT, EVENTS, NOW, PHONE, HttpWay, action, batch, element, post, serving
from tests.workbench.conftest import Bench, read_words

PAGES = ["/", "/visitor/", "/ledger/", "/faults/", "/workspace/"]


def report(bench: Bench, *actions: dict) -> None:
    assert bench.engine.handle(post(EVENTS, batch(element(*actions)))).status == 200


@pytest.mark.parametrize("path", [*PAGES, "/nowhere/", "/static/workbench.css", "/static/workbench.js"])
def test_every_response_is_closed_to_other_sites(bench, path):
    """A strict policy, no sniffing, no frame. The HTML has no inline script or style, and never the API key."""
    response = bench.send("GET", path)
    assert response.status == (404 if path == "/nowhere/" else 200)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    if "html" in response.headers["content-type"]:
        text = response.body.decode()
        assert API_KEY not in text
        assert [word for word in ("<style", " style=", " onclick=", "<script>") if word in text] == []


def test_only_this_machine_gets_a_page(bench):
    """DNS rebinding: a page of another name that leads to this machine. The API and unknown paths stay as they are."""
    with serving(bench.engine) as server, HttpWay(server, base="") as way:
        assert way(Request("GET", "/")).status == 404
        server.pages = bench.workbench.handle
        host = f"localhost:{server.server_port}"
        assert way(Request("GET", "/", headers={"Host": host})).status == 200
        assert way(Request("HEAD", "/", headers={"Host": host})).body == b""
        for name in ("evil.example", f"evil.example:{server.server_port}", "192.0.2.1"):
            assert way(Request("GET", "/workspace/", headers={"Host": name})).status == 403
        assert server.answer(Request("GET", "/"), "192.0.2.1", host).response.status == 403
        assert way(Request("GET", "/v1/nowhere")).headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("path", ["/ledger/", "/faults/", "/workspace/"])
def test_form_of_another_site_changes_nothing(bench, path):
    """A form needs the token of this process, and no origin other than the page's own."""
    report(bench, action())
    before = bench.path.read_bytes()
    fields = {"preset": "hang", "text": "{}", "stamp": "", "anyway": "1"}
    refused = [bench.send("POST", path, body="preset=hang&text=%7B%7D&csrfmiddlewaretoken=guess&anyway=1")]
    refused += [bench.send("POST", path)]
    refused += [
        bench.post(path, fields, origin=origin) for origin in ("null", "http://localhost:1", "https://a.example")
    ]
    assert [response.status for response in refused] == [403] * 5
    assert (bench.path.read_bytes(), bench.injector.faults) == (before, Faults())
    assert len(bench.engine.ledger.entries()) == 1
    assert bench.post(path, {**fields, "anyway": ""}, origin="http://localhost:8899").status != 403


def test_wrong_method_and_a_form_that_is_too_long(bench):
    """The error pages say what to do."""
    response = bench.send("POST", "/")
    assert (response.status, response.headers["allow"]) == (405, "GET")
    assert bench.send("POST", "/workspace/", body="x" * MAX_READ).status == 413


def test_page_is_sent_again_only_after_a_change(bench):
    """The script asks every other second. The sandbox answers 304 until an event, the file or a fault changes."""
    etag = bench.send("GET", "/ledger/").headers["etag"]
    for change in (
        lambda: report(bench, action()),
        lambda: bench.engine.ledger.clear(),
        lambda: bench.save("{"),
        lambda: setattr(bench.injector, "faults", Faults(drip=1)),
    ):
        assert bench.send("GET", "/ledger/", if_none_match=etag).status == 304
        change()
        response = bench.send("GET", "/ledger/", if_none_match=etag)
        assert response.status == 200
        etag = response.headers["etag"]


def test_first_page_lists_experiences_and_audiences(bench):
    """Audiences have their rules, variations their shares, experiences their state. Content is text."""
    page = bench.get()
    for text in (
        "4 experiences, 2 audiences, 1 customer.",
        'Gold {"customer.loyalty": "gold"} 1 100 % Welcome back',
        'A rule of its own {"device": "Mobile"} 2 Left 75 % <b>Left</b>',
        "3 25 % Payload",
        "promo-strip Active Control group: 100 % of the audience.",
        "old-sale Expired Ends 1 Jan 2020, 00:00 (+0000).",
        "new-sale Scheduled Starts 1 Dec 2026, 00:00 (+0000).",
        'Gold {"customer.loyalty": "gold"} hero-banner',
        'Unused {"utm_medium": "email"} no experience',
    ):
        assert text in page
    bench.save({"workspace_id": "a", "api_key": "b", "global_control_group": 5, "locales": ["de"], "experiences": []})
    assert "The global control group, 5 % of all visitors, gets nothing. The workspace has no experience yet." in (
        bench.get()
    )
    plain = {"key": "plain", "payload": {"Text": "Hi"}, "locales": {"de": {"Text": "Hallo"}}}
    bench.save({"workspace_id": "a", "api_key": "b", "locales": ["de"], "experiences": [plain]})
    assert "All users 1 100 % Hi also in de" in bench.get()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["This visitor gets 0 of 4", "No audience matches The visitor is in none of its audiences. 2 audiences"]),
        (
            {},
            ["“Gold”: the customer's loyalty is gold (it is absent) not matched", "old-sale Expired It ended at 2020"],
        ),
        ({}, ["promo-strip All users Control group Audience “All users” → matched, but", '"identifiers": {}']),
        ({"customer_id": "1"}, ["hero-banner Gold Variation 1", "the customer's loyalty is gold → matched"]),
        ({"identifiers": "u_em = ada@example.com"}, ["hero-banner Gold Variation 1"]),
        (
            {"user_agent": PHONE},
            ["the device is Mobile → matched; variation", "Left · 75 %", "3 · 25 %", "% this visitor"],
        ),
        ({"as_of": "2026-12-24T18:30"}, ["new-sale All users Variation 1", '"Thursday", "TIME_OF_THE_DAY": "18"']),
        (
            {"as_of": "2026-12-24T18:30+02:00", "day": "Monday"},
            ['"DAY_OF_THE_WEEK": "Monday", "TIME_OF_THE_DAY": "18"'],
        ),
        ({"hour": "07", "address": "192.0.2.7"}, ['"TIME_OF_THE_DAY": "07", "USER_IP_ADDRESS": "192.0.2.7"']),
        (
            {"utm_term": "tent", "attributes": "cart_value=1=2\nx="},
            ['"utm_term": "tent", "cart_value": "1=2", "x": ""'],
        ),
    ],
)
def test_visitor_gets_answers_with_reasons(bench, fields, expected):
    """The form describes the visitor. Each experience has its variation, or the reason why not."""
    page = bench.get("/visitor/", **fields)
    assert [text for text in expected if text not in page] == []
    assert bench.engine.ledger.entries() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"as_of": "yesterday"}, "Write a time such as 2026-12-24T18:00."),
        ({"attributes": "cart_value"}, "“cart_value” can't be sent. Write name=value."),
        ({"identifiers": "=1"}, "“=1” can't be sent."),
        ({"attributes": "identifiers=1"}, "“identifiers=1” can't be sent."),
        ({"address": "nowhere"}, "Enter a valid IPv4 or IPv6 address."),
        ({"attributes": "DAY_OF_THE_WEEK=Someday"}, "The sandbox refuses this fetch: DAY_OF_THE_WEEK must be one of"),
    ],
)
def test_field_with_a_mistake_has_its_message(bench, fields, message):
    """A mistake gives no answers."""
    page = bench.get("/visitor/", **fields)
    assert message in page
    assert "This visitor gets" not in page


def test_all_experiences_are_asked_for(bench):
    """A fetch has at most 25 keys, so more experiences need more fetches."""
    experiences = [{"key": f"key-{number}", "payload": {}} for number in range(60)]
    bench.save({"workspace_id": "a", "api_key": "b", "experiences": experiences})
    assert "This visitor gets 60 of 60 experiences" in bench.get("/visitor/")


def test_ledger_has_rates_by_variation(bench):
    """A variation has impressions, clicks and a rate. Long ids of visitors are cut."""
    assert "No events yet" in bench.get("/ledger/")
    second = {**CONTEXT, "moe_variation_id": "10", "b_id": "cta"}
    clicked = action(action="MOE_PERSONALIZATION_MESSAGE_CLICKED", attributes=second)
    actions = [action(), action(), action(attributes=second), clicked]
    report(bench, *actions, *actions)
    anonymous = action(event_time=1_790_000_000, moe_event_uuid=str(uuid.uuid4()))
    bench.engine.handle(post(EVENTS, batch(element(anonymous, customer_id="anonymous-0123456789"))))
    page = bench.get("/ledger/")
    for text in (
        "Impressions 4 Clicks 1 Click-through rate 25.0 % Visitors 2",
        "hero-banner 4 shown, 1 clicked, 25.0 %",
        "Variation 2 All users 3 impressions 0 clicks 0.0 % Variation 10 All users 1 impressions 1 clicks 100.0 %",
        "14:13:20 Impression hero-banner 2 – anonymous-0…",
        "Click hero-banner 10 cta 42",
    ):
        assert text in page
    assert bench.post("/ledger/").headers["location"] == "/ledger/"
    assert "No events yet" in bench.get("/ledger/")


def test_ledger_has_conversion_rates(bench):
    """A conversion counts for each variation that its visitor saw before, and once for each visitor."""
    second = {**CONTEXT, "moe_variation_id": "10"}
    people = {"user-1": [action()], "user-2": [action(), action()], "user-3": [action(), action(attributes=second)]}
    bench.engine.handle(post(EVENTS, batch(*(element(*seen, customer_id=name) for name, seen in people.items()))))
    for name, at in (("user-1", NOW - 60), ("user-3", NOW), ("user-3", NOW), ("user-4", NOW)):
        assert (
            bench.engine.handle(call(report_order(order(user_time=int(at)), customer_id=name), key=API_KEY)).status
            == 200
        )
    page = bench.get("/ledger/")
    for text in (
        "Visitors 4 Conversion rate 33.3 %",
        "5 shown, 0 clicked, 0.0 % ; 1 of 3 visitors converted, 33.3 %",
        "Variation 2 All users 4 impressions 0 clicks 0.0 % 33.3 % of its visitors converted",
        "Variation 10 All users 1 impressions 0 clicks 0.0 % 100.0 % of its visitors converted",
        "Conversions after an impression: Order placed (4)",
        "Conversion Order placed – – user-4",
    ):
        assert text in page


def test_settings_of_the_site_change_no_page(bench, settings):
    """The language, the time zone, the numbers and the templates of the site don't matter."""
    clicked = action(action="MOE_PERSONALIZATION_MESSAGE_CLICKED", attributes={**CONTEXT, "b_id": "cta"})
    report(bench, clicked)
    for _ in range(5):
        report(bench, *(action() for _ in range(250)))
    pages = {path: bench.get(path) for path in PAGES}
    assert "Impressions 1250" in pages["/ledger/"]
    settings.LANGUAGE_CODE, settings.TIME_ZONE, settings.USE_TZ = "de", "Asia/Tokyo", False
    settings.USE_THOUSAND_SEPARATOR, settings.TEMPLATES, settings.ROOT_URLCONF = True, [], "nowhere"
    assert {path: bench.get(path) for path in PAGES} == pages
    assert "Enter a valid IPv4" in bench.get("/visitor/", address="x")


@pytest.mark.parametrize("name", PRESETS)
def test_switch_turns_a_fault_on(bench, name):
    """One button sets the faults, and every page says so."""
    response = bench.post("/faults/", {"preset": name})
    assert (response.status, response.headers["location"]) == (303, "/faults/")
    assert bench.injector.faults == PRESETS[name].faults
    body = bench.send("GET", "/faults/").body.decode()
    assert body.count('aria-pressed="true"') == 1
    assert f'value="{name}" aria-pressed="true"' in body
    assert ("Faults are on:" in bench.get()) is (name != "off")


def test_form_sets_each_fault(bench):
    """The form has all faults of the sandbox. A value that the sandbox refuses changes nothing."""
    wanted = Faults(latency=0.5, error_rate=0.25, error_status=429, retry_after=7, seed=3)
    fields = {name: value for name, value in dataclasses.asdict(wanted).items() if value is not None}
    assert bench.post("/faults/", fields).status == 303
    assert bench.injector.faults == wanted
    assert "latency 0.5, error_rate 0.25, error_status 429, retry_after 7, seed 3" in bench.get("/faults/")
    for name, value, message in [
        ("reset", "2", "reset must be a rate from 0 to 1"),
        ("error_status", "200", "error_status must be an integer from 400 to 599"),
        ("latency", "soon", "Enter a number."),
    ]:
        page = read_words(bench.post("/faults/", {**fields, name: value}))
        assert "Nothing has changed. Correct the marked field." in page
        assert message in page
    assert bench.injector.faults == wanted

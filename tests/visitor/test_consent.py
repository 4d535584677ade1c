"""The consent of a visitor."""

import pytest
from django.contrib.sessions.backends.db import SessionStore

from django_moe_personalize.visitor.identity import DENIED, GPC, GRANTED, Consent, aget_consent, get_consent
from tests.visitor.conftest import FUNCTIONS


@pytest.fixture
def consent_of(twin):
    """Return a function that builds a request and returns its consent."""
    return lambda **options: twin.call(get_consent, aget_consent, twin.build_request(**options))


@pytest.mark.parametrize(
    ("header", "consent"),
    [(None, GRANTED), ("1", GPC), (" 1 ", GPC), ("0", GRANTED), ("", GRANTED), ("true", GRANTED), ("11", GRANTED)],
)
def test_global_privacy_control_denies_identify_and_track(consent_of, header, consent):
    """``Sec-GPC: 1`` still allows fetching. Without it, a visitor allows everything."""
    assert consent_of(headers={} if header is None else {"Sec-GPC": header}) == consent
    assert Consent(fetch=True, identify=True, track=True) == GRANTED
    assert Consent(fetch=True, identify=False, track=False) == GPC


@pytest.mark.parametrize("name", ["answer", "aanswer", "answer_object"])
@pytest.mark.parametrize(("track", "allowed"), [(True, True), ("no", False), (None, False)])
def test_site_has_the_last_word(consent_of, configure, name, track, allowed):
    """A sync or async CONSENT wins over Global Privacy Control. A word such as "no" grants nothing."""
    configure(CONSENT=f"{FUNCTIONS}.{name}")
    answer = Consent(fetch=True, identify=False, track=track)
    assert consent_of(headers={"Sec-GPC": "1"}, answer=answer) == Consent(fetch=True, identify=False, track=allowed)


@pytest.mark.django_db
def test_sync_function_may_read_the_session(consent_of, configure):
    """A sync CONSENT may query the database, even if an event loop is running."""
    configure(CONSENT=f"{FUNCTIONS}.consent_from_session")
    session = SessionStore()
    session["choice"] = "all"
    session.save()
    assert consent_of(session=SessionStore(session.session_key)) == GRANTED


@pytest.mark.parametrize(
    ("name", "failure"),
    [("fail", "raised LookupError"), ("answer", "returned a value of type bool"), ("absent", "raised ImportError")],
)
def test_failing_function_denies_everything(consent_of, configure, caplog, name, failure):
    """The log says so once, without the text of the exception."""
    configure(CONSENT=f"{FUNCTIONS}.{name}")
    assert [consent_of(answer=True) for _ in range(2)] == [DENIED, DENIED]
    failed = f"CONSENT failed ({FUNCTIONS}.{name} {failure})"
    assert caplog.messages == [f"{failed}, so fetching, identifying and tracking are denied."]
    assert caplog.records[0].exc_info is None
    assert Consent(fetch=False, identify=False, track=False) == DENIED

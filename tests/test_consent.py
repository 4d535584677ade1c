"""What a visitor allows."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncRequestFactory, RequestFactory

from django_moe_personalize.visitor.consent import DENIED, GPC, GRANTED, Consent, aget_consent, get_consent

HERE = "tests.test_consent"


def allow_tracking(request):
    """Allow to fetch and track."""
    return Consent(identify=False)


async def allow_tracking_later(request):
    """Allow the same from a coroutine."""
    return Consent(identify=False)


def read_session(request):
    """Read the visitor's choice where a site keeps it."""
    return Consent(track=request.session.get("choice") == "all")


def fail(request):
    """Raise an error that quotes the visitor."""
    raise ValueError("ada@example.com")


def answer_true(request):
    """Answer something else than a Consent."""
    return True


def answer_words(request):
    """Answer with words where booleans belong."""
    return Consent(fetch=True, identify="no", track=None)


@pytest.fixture(params=["sync", "async"])
def consent_of(request):
    """Return the consent for a request with these headers, both ways."""

    def get(session=None, **headers):
        factory = RequestFactory() if request.param == "sync" else AsyncRequestFactory()
        asked = factory.get("/", headers=headers)
        asked.session = session
        return get_consent(asked) if request.param == "sync" else async_to_sync(aget_consent)(asked)

    return get


@pytest.fixture
def configure(settings):
    """Set options of MOE_PERSONALIZE."""

    def set_options(**options):
        settings.MOE_PERSONALIZE = {"SANDBOX": True, **options}

    return set_options


def test_everything_is_granted_by_default(consent_of):
    """A site that says nothing has its visitors' consent."""
    assert consent_of() == GRANTED == Consent(fetch=True, identify=True, track=True)


@pytest.mark.parametrize("value", ["1", " 1 "])
def test_global_privacy_control_denies_identify_and_track(consent_of, value):
    """``Sec-GPC: 1`` leaves fetching alone."""
    assert consent_of(sec_gpc=value) == GPC == Consent(fetch=True, identify=False, track=False)


@pytest.mark.parametrize("value", ["0", "", "true", "11"])
def test_another_value_of_the_header_means_nothing(consent_of, value):
    """Only ``1`` is defined."""
    assert consent_of(sec_gpc=value) == GRANTED


@pytest.mark.parametrize("name", ["allow_tracking", "allow_tracking_later"])
def test_the_sites_answer_is_final(consent_of, configure, name):
    """A CONSENT of either kind wins over the header."""
    configure(CONSENT=f"{HERE}.{name}")
    assert consent_of(sec_gpc="1") == Consent(fetch=True, identify=False, track=True)


@pytest.mark.django_db
def test_a_sync_callable_may_read_the_session(consent_of, configure):
    """The session in the database is within reach, under a running loop too."""
    from django.contrib.sessions.backends.db import SessionStore

    configure(CONSENT=f"{HERE}.read_session")
    session = SessionStore()
    session["choice"] = "all"
    session.save()
    assert consent_of(SessionStore(session.session_key)).track is True


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("fail", "raised ValueError"),
        ("answer_true", "returned a value of type bool"),
        ("absent", "raised ImportError"),
    ],
)
def test_a_callable_that_fails_denies_everything(consent_of, configure, caplog, name, failure):
    """No answer is a no, logged once without what the visitor sent."""
    configure(CONSENT=f"{HERE}.{name}")
    assert consent_of() == consent_of() == DENIED == Consent(fetch=False, identify=False, track=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"CONSENT gave no answer, so everything is denied: {HERE}.{name} {failure}."
    ]
    assert caplog.records[0].exc_info is None


def test_only_true_grants(consent_of, configure):
    """A word such as "no" is no consent."""
    configure(CONSENT=f"{HERE}.answer_words")
    assert consent_of() == Consent(fetch=True, identify=False, track=False)

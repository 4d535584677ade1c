"""A response that isn't a 200 becomes an error that says enough and not too much (contract §1)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ResponseError, ServerError
from django_moe_personalize.moengage.errors import build_error, read_retry_after
from django_moe_personalize.moengage.http1 import Response
from tests.anything import patiently

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("kind", "statuses", "is_retryable"),
    [
        (ResponseError, [201, 204, 301, 307, 400, 404, 413, 499, 600], False),
        (AuthenticationError, [401, 403], False),
        (RateLimitedError, [429], True),
        (ServerError, [500, 503, 599], True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_status_has_an_error_of_its_kind(kind, statuses, is_retryable):
    """Each status gives its own class of error."""
    for status in statuses:
        error = build_error(Response(status))
        assert (type(error), error.status, error.retryable) == (kind, status, is_retryable)
        assert str(error) == f"MoEngage answered {status}"


@pytest.mark.parametrize(
    ("headers", "is_limit"),
    [
        ({"x-envoy-ratelimited": "True"}, True),
        ({"x-envoy-ratelimited": "false"}, False),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "12"}, True),
        ({"x-ratelimit-remaining": "0"}, False),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "12"}, False),
    ],
)
def test_headers_may_say_that_the_rate_limit_is_used_up(headers, is_limit):
    """Any status but 401 and 403 gives a RateLimitedError, because a wait can't fix credentials."""
    for status in (400, 503):
        error = build_error(Response(status, headers))
        assert isinstance(error, RateLimitedError) == is_limit
        assert error.status == status
        assert getattr(error, "retry_after", None) == (12.0 if is_limit and "x-ratelimit-reset" in headers else None)
    assert type(build_error(Response(401, headers))) is AuthenticationError


@pytest.mark.parametrize(
    ("body", "message", "title", "description"),
    [
        pytest.param(
            {"title": "Authentication required", "description": "Wrong key", "code": "x"},
            "MoEngage answered 401: Authentication required",
            "Authentication required",
            "Wrong key",
            id="documented",
        ),
        *(
            pytest.param({"title": title}, f"MoEngage answered 401: {title}", title, "", id=title)
            for title in ("Malformed JSON", "Invalid Field Value", "Request Error")
        ),
        pytest.param(
            {"title": "No wanda@example.com"}, "MoEngage answered 401", "No wanda@example.com", "", id="other-title"
        ),
        pytest.param({"title": 5, "description": ["x"]}, "MoEngage answered 401", "", "", id="no-text"),
        *(
            pytest.param(body, "MoEngage answered 401", "", "", id=repr(body))
            for body in (b"", b"<html><h1>502</h1></html>", b"\xff", b"null", b'["x"]')
        ),
        pytest.param({"description": "x" * 5000}, "MoEngage answered 401", "", "x" * 1000, id="long"),
    ],
)
def test_vendors_words_are_attributes(body, message, title, description):
    """Title and description may quote the request, so the message has only documented titles. HTML gives no words."""
    error = build_error(Response(401, body=body if isinstance(body, bytes) else json.dumps(body).encode()))
    assert (str(error), error.title, error.description) == (message, title, description)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"retry-after": "30"}, 30.0, id="seconds"),
        pytest.param({"retry-after": " 1.5 "}, 1.5, id="fraction"),
        pytest.param({"retry-after": "0"}, 0.0, id="zero"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, 60.0, id="date"),
        pytest.param({"retry-after": "Fri, 15 Jan 2027 09:01:00 +0100"}, 60.0, id="date-of-another-zone"),
        pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0, id="past"),
        pytest.param({"x-ratelimit-reset": "12"}, 12.0, id="reset"),
        pytest.param({"x-ratelimit-reset": "1800000060"}, 60.0, id="reset-as-unix-time"),
        pytest.param({"x-ratelimit-reset": "1700000000"}, 0.0, id="reset-as-past-unix-time"),
        pytest.param({"retry-after": "5", "x-ratelimit-reset": "60"}, 5.0, id="both"),
        pytest.param({"retry-after": "0", "x-ratelimit-reset": "60"}, 0.0, id="both-and-zero"),
        pytest.param({"retry-after": "soon", "x-ratelimit-reset": "60"}, 60.0, id="nonsense-then-reset"),
        pytest.param({"retry-after": "-5"}, None, id="negative"),
        pytest.param({"retry-after": "nan"}, None, id="nan"),
        pytest.param({"retry-after": "inf"}, None, id="infinite"),
        pytest.param({"retry-after": "٣"}, None, id="arabic-digit"),
        pytest.param({"retry-after": "9" * 400}, None, id="absurd"),
        pytest.param({"retry-after": "Fri, 99 Foo 2027 08:01:00 GMT"}, None, id="no-date"),
    ],
)
def test_wait_of_a_429_is_read(headers, expected):
    """The wait comes from seconds, an HTTP date or the reset header. An invalid value gives None."""
    assert read_retry_after(headers, clock=lambda: NOW) == expected
    error = build_error(Response(429, headers), clock=lambda: NOW)
    assert (error.status, error.retry_after) == (429, expected)


near_dates = st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d [-+GMT0-9]{1,9}\Z")


@patiently
@given(value=st.text() | near_dates)
def test_any_wait_is_read_or_none(value):
    """No value of a header raises an error, and each wait is finite and not negative."""
    wait = read_retry_after({"retry-after": value})
    assert wait is None or 0.0 <= wait < 1e12

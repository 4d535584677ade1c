"""Which URLs credentials and visitors may be sent to."""

import re

import pytest

from django_moe_personalize.moengage.base_url import validate_base_url
from django_moe_personalize.moengage.transport import RequestsTransport


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://sdk-01.moengage.com/v1", "https://sdk-01.moengage.com/v1"),
        ("HTTPS://SDK-01.MoEngage.com/v1//", "https://sdk-01.moengage.com/v1"),
        ("https://proxy.example:8443", "https://proxy.example:8443"),
        ("https://[2001:db8::1]/V1/", "https://[2001:db8::1]/V1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://127.8.9.1", "http://127.8.9.1"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_base_url_is_normalized(url, expected):
    """Scheme and host in lower case, no slash at the end; doing it again changes nothing."""
    assert validate_base_url(url) == expected
    assert validate_base_url(expected) == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must be like"),
        ("https://", "must be like"),
        ("https:///v1", "must be like"),
        ("sdk-01.moengage.com/v1", "must be like"),
        ("https://host:port", "must be like"),
        ("https://host:0", "must be like"),
        ("https://host:99999", "must be like"),
        ("https://[::1", "must be like"),
        ("https://[v1.x]/", "must be like"),
        ("https://ho st/", "must be like"),
        ("https://host/\nv1", "must be like"),
        ("https://host\\@evil.example/", "must be like"),
        ("https://höst/", "must be like"),
        ("https://-host/", "must be like"),
        ("ftp://host/", "must start with https"),
        ("//host/v1", "must start with https"),
        ("https://me:hunter2@host/", "user name or password"),
        ("https://host/?key=hunter2", "query or fragment"),
        ("https://host/?", "query or fragment"),
        ("https://host/#hunter2", "query or fragment"),
        ("http://sdk-01.moengage.com/v1", "loopback alone"),
        ("http://10.0.0.1/", "loopback alone"),
        ("http://0.0.0.0/", "loopback alone"),
        ("http://localhost.evil.example/", "loopback alone"),
    ],
)
def test_base_url_that_is_not_safe_is_refused(url, problem):
    """The message names the rule and quotes nothing of the URL, which may hold a password."""
    with pytest.raises(ValueError, match=problem) as caught:
        validate_base_url(url)
    assert not re.search("hunter2|evil", str(caught.value))
    with pytest.raises(ValueError, match=problem):
        RequestsTransport(url)

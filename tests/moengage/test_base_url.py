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
        *((url, "must be like") for url in ("", "sdk-01.moengage.com/v1")),
        *((f"https://{rest}", "must be like") for rest in ("", "/v1", "[::1", "[v1.x]/", "ho st/", "höst/", "-host/")),
        *((f"https://host{rest}", "must be like") for rest in (":port", ":0", ":99999", "/\nv1", "\\@evil.example/")),
        *((url, "must start with https") for url in ("ftp://host/", "//host/v1")),
        ("https://me:hunter2@host/", "user name or password"),
        *((f"https://host/{rest}", "query or fragment") for rest in ("?key=hunter2", "?", "#hunter2")),
        *((f"http://{host}/v1", "loopback alone") for host in ("sdk-01.moengage.com", "10.0.0.1", "0.0.0.0")),
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

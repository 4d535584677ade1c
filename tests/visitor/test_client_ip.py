"""The visitor's IP address, with and without trusted proxies."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.visitor.attributes import _describe, get_client_ip, parse_node
from tests.anything import patiently

VISITOR, OTHER = "198.41.0.4", "8.8.8.8"
PROXIES = [ipaddress.ip_network(network) for network in ("10.0.0.0/8", "203.119.0.0/24", "2a00::/32")]


def read(remote="10.0.0.1", *, forwarded=None, xff=None, proxies=PROXIES, precision="full"):
    """Return the address of a request with these headers."""
    headers = {"HTTP_FORWARDED": forwarded, "HTTP_X_FORWARDED_FOR": xff, "REMOTE_ADDR": remote}
    return get_client_ip({name: value for name, value in headers.items() if value is not None}, proxies, precision)


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        (VISITOR, VISITOR),
        ("::ffff:198.41.0.4", VISITOR),
        ("2001:4860:4860::8888", "2001:4860:4860::8888"),
        ("[2001:4860:4860::8888]:443", "2001:4860:4860::8888"),
        ("127.0.0.1", ""),
        ("192.168.1.1", ""),
        ("100.64.0.1", ""),
        ("169.254.1.1", ""),
        ("0.0.0.0", ""),
        ("224.0.0.1", ""),
        ("::1", ""),
        ("fe80::1", ""),
        ("fec0::1", ""),
        ("ff02::1", ""),
        ("fd00::1", ""),
        ("2001:4860:4860::8888%eth0", ""),
        (None, ""),
        ("", ""),
        ("/run/gunicorn.sock", ""),
        ("unix:", ""),
        ("localhost", ""),
        ("1" * 5000, ""),
        ("1.2.3", ""),
        ("01.2.3.4", ""),
    ],
)
def test_the_peer_is_the_visitor_without_proxies(remote, address):
    """Without trusted proxies the headers mean nothing. An address that is not public is left out."""
    assert read(remote, xff=OTHER, forwarded=f"for={OTHER}", proxies=[]) == address


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"xff": VISITOR}, VISITOR),
        ({"xff": f"{OTHER}, {VISITOR}"}, VISITOR),
        ({"xff": f"{OTHER}, {VISITOR}, 203.119.0.9, 10.2.3.4"}, VISITOR),
        ({"xff": f"{VISITOR}, ::ffff:10.2.3.4"}, VISITOR),
        ({"xff": f"{VISITOR}:5123"}, VISITOR),
        ({"xff": "[2001:4860::1]:80"}, "2001:4860::1"),
        ({"xff": "2001:4860::1"}, "2001:4860::1"),
        ({"xff": f"{OTHER}, unknown"}, ""),
        ({"xff": f"{OTHER}, "}, ""),
        ({"xff": f"{OTHER}, 10.0.0.999"}, ""),
        ({"xff": f"{OTHER}, 192.168.0.7"}, ""),
        ({"xff": "203.119.0.9"}, ""),
        ({}, ""),
        ({"forwarded": f"for={VISITOR}"}, VISITOR),
        ({"forwarded": f'For="{VISITOR}:4711";proto=https; by=10.0.0.2;'}, VISITOR),
        ({"forwarded": 'for="[2001:4860::1]:4711"'}, "2001:4860::1"),
        ({"forwarded": f"for={OTHER}, for={VISITOR};host=shop, for=10.9.9.9"}, VISITOR),
        ({"forwarded": f"for={OTHER}, proto=https"}, ""),
        ({"forwarded": f"for={OTHER}, for=_hidden"}, ""),
        ({"forwarded": f"for={OTHER}, for=unknown"}, ""),
        ({"forwarded": f"for={OTHER};for={VISITOR}"}, ""),
        ({"forwarded": f'for={OTHER}, for="{VISITOR}'}, ""),
        ({"forwarded": f'for="{OTHER}, for={VISITOR}'}, VISITOR),
        ({"forwarded": 'for=""'}, ""),
        ({"forwarded": f"for={VISITOR}", "xff": f"{OTHER}, {VISITOR}"}, VISITOR),
        ({"forwarded": f"for={OTHER}", "xff": VISITOR}, ""),
        ({"forwarded": "for=unknown", "xff": VISITOR}, ""),
        ({"remote": OTHER, "forwarded": f"for={VISITOR}", "xff": VISITOR}, OTHER),
    ],
)
def test_headers_of_trusted_proxies(headers, address):
    """The visitor is the last address that is not a trusted proxy. Nothing before a bad entry counts.

    If the two headers disagree, the address is unknown. A request that bypasses the proxies has its own address.
    """
    assert read(**headers) == address


@pytest.mark.parametrize("remote", [None, "", "localhost", "unix:", "unix:/run/site.sock", "/run/site.sock"])
@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({"xff": f"{OTHER}, {VISITOR}"}, VISITOR),
        ({"xff": f"{OTHER}, {VISITOR}, unix:"}, VISITOR),
        ({"xff": f"{VISITOR}, 10.0.0.7"}, VISITOR),
        ({"xff": f"{OTHER}, "}, ""),
        ({"forwarded": f"for={VISITOR}, for=unix:"}, VISITOR),
        ({}, ""),
    ],
)
def test_proxy_on_a_unix_socket(remote, headers, address):
    """If TRUSTED_PROXIES lists "unix", a connection without an address comes from a trusted proxy.

    Without "unix", the headers mean nothing. A connection from an address never counts as a socket.
    """
    assert read(remote, **headers, proxies=[*PROXIES, "unix"]) == address
    assert read(remote, **headers) == ""
    assert read(OTHER, **headers, proxies=["unix"]) == OTHER


@pytest.mark.parametrize(
    ("remote", "headers", "options", "logged"),
    [
        ("", {"xff": VISITOR}, {}, ["through a unix socket", 'Add "unix" to']),
        ("/run/site.sock", {"forwarded": f"for={VISITOR}"}, {}, ["through a unix socket", 'Add "unix" to']),
        ("127.0.0.1", {"xff": VISITOR}, {}, ["through an address that is not public", "Add its network to"]),
        ("", {}, {}, []),
        (OTHER, {"xff": VISITOR}, {}, []),
        ("", {"xff": VISITOR}, {"precision": "off"}, []),
        ("", {"xff": VISITOR}, {"proxies": ["unix"]}, []),
    ],
)
def test_proxy_that_is_not_trusted(caplog, remote, headers, options, logged):
    """The log says once why MoEngage gets no address, and what to add to TRUSTED_PROXIES. It names no address."""
    for _ in range(2):
        read(remote, **headers, **options)
    assert len(caplog.messages) == bool(logged)
    assert all(text in caplog.messages[0] and VISITOR not in caplog.messages[0] for text in logged)


@pytest.mark.parametrize(
    ("precision", "v4", "v6"),
    [
        ("full", "198.41.0.4", "2001:4860:4860:ff01::8"),
        ("truncated", "198.41.0.0", "2001:4860:4860::"),
        ("off", "", ""),
    ],
)
def test_precision(precision, v4, v6):
    """Truncated, an address is its /24 or /48 network."""
    assert read("198.41.0.4", precision=precision) == v4
    assert read("2001:4860:4860:ff01::8", precision=precision) == v6


_nodes = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["10.0.0.1", "203.119.0.9", "2a00::1", "unknown", "", "for=1.1.1.1", '"', ";"]),
    st.text(max_size=20),
)


@patiently
@given(remote=_nodes, xff=st.lists(_nodes), forwarded=st.text(), precision=st.sampled_from(["full", "truncated"]))
def test_any_headers_give_a_public_address_or_none(remote, xff, forwarded, precision):
    """With any text in the headers, the result is empty or a public address outside of the proxies."""
    address = read(remote, xff=", ".join(xff), forwarded=forwarded, precision=precision)
    if address:
        parsed = ipaddress.ip_address(address)
        assert precision == "truncated" or (parse_node(address) == parsed and is_visitor(address))


def is_visitor(address):
    """Return whether an address is not a proxy's, also as an IPv4-mapped address such as ``::ffff:10.0.0.1``."""
    return not any(parse_node(str(address)) in proxy for proxy in PROXIES)


_visitors = st.ip_addresses().filter(is_visitor)


@patiently
@given(junk=st.one_of(st.text(), _nodes), visitor=_visitors, kind=st.sampled_from(["xff", "forwarded"]))
def test_what_a_visitor_writes_changes_nothing(junk, visitor, kind):
    """The entry of the proxy decides. Text that the visitor wrote before it changes nothing."""
    node = str(visitor) if visitor.version == 4 else f"[{visitor}]"
    added = node if kind == "xff" else f'for="{node}"'
    assert read(**{kind: f"{junk}, {added}"}) == read(**{kind: added})


def test_memory_is_bounded():
    """1,024 addresses are remembered, and no long text."""
    _describe.cache_clear()
    for number in range(1200):
        peer = f"198.41.{number // 256}.{number % 256}"
        assert read(peer, proxies=[]) == peer
    assert _describe.cache_info().currsize == 1024
    for number in range(3):
        assert read("1" * 64 + str(number), proxies=[]) == ""
    assert _describe.cache_info().misses == 1201

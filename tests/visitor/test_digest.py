"""Digests tell different lists, and different visitors, apart."""

from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Identity, Visitor, build_digest

parts = st.lists(st.text(), max_size=5)


@given(parts, parts)
def test_digests_tell_parts_apart(first, second):
    """Different lists have different digests, wherever one part ends and the next begins."""
    assert (build_digest(first) == build_digest(second)) == (first == second)


def test_digest_depends_on_the_secret(settings):
    """Nobody can compute a digest without the site's secret."""
    digest = build_digest(["a"])
    settings.SECRET_KEY = "another"
    assert build_digest(["a"]) != digest


identities = st.builds(
    Identity,
    customer_id=st.none() | st.sampled_from(["", "a", "anon-a", "id:a", "none"]),
    user_identifiers=st.dictionaries(
        st.sampled_from(["u_em", "u_mb", "1"]), st.sampled_from(["a", "b", ""]), max_size=2
    ),
    anonymous=st.booleans(),
)
attributes = st.dictionaries(st.sampled_from(["u_em", "a", "b", "1"]), st.sampled_from(["a", "b", ""]), max_size=3)


@given(identities, attributes, identities, attributes)
def test_visitors_are_told_apart(one, his, other, hers):
    """Two visitors share a digest only if identity and attributes are the same."""
    same = (one, his) == (other, hers)
    assert (Visitor(one, his).digest == Visitor(other, hers).digest) == same


def test_vary_cache_on_limits_the_attributes_that_count():
    """Attributes outside VARY_CACHE_ON don't change the digest; identities always do."""
    attributes = [{"utm_medium": "email", "USER_IP_ADDRESS": address} for address in ("192.0.2.1", "192.0.2.2")]
    visitors = [(Identity("1"), attributes[0]), (Identity("1"), attributes[1]), (Identity("2"), attributes[0])]
    assert len({Visitor(*visitor).digest for visitor in visitors}) == 3
    with override_personalize(VARY_CACHE_ON=["utm_medium"]):
        first, second, third = (Visitor(*visitor).digest for visitor in visitors)
    assert first == second != third

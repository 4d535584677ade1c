"""JSON is parsed strictly and within bounds; visitors with the same variation share one frozen copy of its content."""

import copy
import json
import pickle
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_moe_personalize.exceptions import InvalidResponseError
from django_moe_personalize.moengage.client import read_experience
from django_moe_personalize.moengage.json_values import MAX_DEPTH, MAX_DIGITS, encode, freeze, parse_json, thaw
from tests.anything import json_values, patiently, same


@patiently
@given(value=json_values)
def test_frozen_values_equal_plain_ones(value):
    """A frozen value has the same JSON, and copies of it are plain."""
    frozen = freeze(value)
    assert freeze(frozen) == frozen == value
    assert encode(frozen) == encode(frozen) == json.dumps(value, separators=(",", ":"))
    for plain in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen)), thaw(frozen)):
        assert plain == value
        assert type(plain) is type(value)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.payload.update(Title="x"),
        lambda e: e.payload.__setitem__("Title", "x"),
        lambda e: e.payload.pop("Title"),
        lambda e: e.payload.__ior__({"Title": "x"}),
        lambda e: e.payload["list"].append(1),
        lambda e: e.payload["list"].sort(),
        lambda e: e.payload["list"].__iadd__([1]),
        lambda e: e.payload["list"][0]["offering_content"].clear(),
        lambda e: e.experience_context.setdefault("b_id", "x"),
        lambda e: e.offerings[0].content.update(title="x"),
        lambda e: e.offerings[1].context.popitem(),
        lambda e: e.offerings[1].raw.__delitem__("dp_offering_id"),
    ],
)
def test_an_experience_is_unchangeable(change):
    """A change at any depth raises TypeError, and a later change of the source has no effect."""
    offering = {"dp_offering_id": "1", "offering_content": {"title": "a"}, "offering_context": {"cid": "1"}}
    entry = {
        "payload": {"Title": "Hello", "list": [offering], "text": json.dumps([offering])},
        "experience_context": {"cid": "1"},
    }
    experience, before = read_experience("hero", entry), read_experience("hero", copy.deepcopy(entry))
    with pytest.raises(TypeError, match=r"Change a copy: copy\.deepcopy"):
        change(experience)
    offering.clear()
    entry["payload"]["list"].clear()
    entry["experience_context"].clear()
    assert experience == before


def test_only_json_is_encoded():
    """A value that JSON doesn't have raises TypeError."""
    with pytest.raises(TypeError, match="set is not a JSON type"):
        encode({"a": {1}})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param(b"", "it is empty", id="empty"),
        pytest.param(b" \r\n", "it is empty", id="blank"),
        pytest.param(b"<html>busy</html>", "it is not JSON: Expecting value at character 0", id="html"),
        pytest.param(b'{"a": 1', "it is not JSON", id="cut-short"),
        pytest.param(b"{} {}", "it is not JSON: Extra data", id="two-values"),
        pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="bom"),
        pytest.param(b'"\xff"', "it is not UTF-8", id="latin-1"),
        pytest.param('{"a": 1}'.encode("utf-16"), "it is not UTF-8", id="utf-16"),
        pytest.param(b'{"a": NaN}', "NaN or Infinity", id="nan"),
        pytest.param(b"[-Infinity]", "NaN or Infinity", id="infinity"),
        pytest.param(b"1e999", "a number that is too large", id="overflow"),
        pytest.param(b"9" * (MAX_DIGITS + 1), "a number that is too large", id="huge-integer"),
        pytest.param(b'{"a": 1, "a": 1}', "repeats a name", id="duplicate-name"),
        pytest.param(b'"\x00"', "it is not JSON: Invalid control character", id="control-character"),
        pytest.param(b"[" * 1000, f"nests deeper than {MAX_DEPTH}", id="deep-open"),
        pytest.param(b'{"a":' * 65 + b"1" + b"}" * 65, f"nests deeper than {MAX_DEPTH}", id="deep-objects"),
    ],
)
def test_a_bad_body_is_refused(body, problem):
    """The message names the problem."""
    with pytest.raises(InvalidResponseError, match=problem):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None, id="deepest-allowed"),
        pytest.param(b"[" + b",".join([b'{"a":[]}'] * 99) + b"]", [{"a": []}] * 99, id="wide-is-not-deep"),
        pytest.param(b'["' + b"[{" * 99 + b'"]', ["[{" * 99], id="brackets-in-a-string"),
        pytest.param(b'["' + b"[" * 99 + rb"\"[" + b'"]', ["[" * 99 + '"['], id="brackets-after-an-escaped-quote"),
        pytest.param(b"9" * MAX_DIGITS, int("9" * MAX_DIGITS), id="longest-integer"),
        pytest.param("\u00e9\U0001f600".join('""').encode(), "\u00e9\U0001f600", id="utf-8"),
        pytest.param(rb'"\ud83d\ude00"', "\U0001f600", id="surrogate-pair"),
        pytest.param(rb'{"a": "x\ud83dy"}', {"a": "x\ufffdy"}, id="lone-surrogate"),
    ],
)
def test_unusual_but_valid_json_is_read(body, expected):
    """Width, length and Unicode are fine, and a lone surrogate can't reach a page."""
    value = parse_json(body)
    assert expected is None or same(value, expected)


def test_an_endless_string_of_escaped_quotes_is_refused_at_once():
    """The scan for depth takes linear time for every text."""
    body = b'"' + rb"\"" * 400_000 + b"[" * 65
    worker = threading.Thread(target=pytest.raises, args=(InvalidResponseError, parse_json, body), daemon=True)
    worker.start()
    worker.join(10)
    assert not worker.is_alive()


def test_deep_json_is_refused_with_little_stack_left():
    """The depth is checked before the parser recurses, so the caller's stack doesn't matter."""

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
        else:
            with pytest.raises(InvalidResponseError):
                parse_json(b"[" * 500 + b"]" * 500)

    depth = 0
    frame = sys._getframe()
    while frame := frame.f_back:
        depth += 1
    descend(sys.getrecursionlimit() - depth - 150)


@patiently
@given(body=st.binary() | st.text(alphabet='[]{}",:\\u0d8eE+-.1 tfn').map(str.encode))
def test_any_bytes_are_parsed_or_refused(body):
    """No body makes the parser raise anything but InvalidResponseError, and every value can be encoded."""
    try:
        value = parse_json(body)
    except InvalidResponseError:
        return
    assert json.dumps(value, ensure_ascii=False, allow_nan=False).encode()

"""A response just below the size limit takes little work, whatever it holds, and costs only its own experience."""

import json
import tracemalloc

import pytest

from benchmarks import hostile
from django_moe_personalize.exceptions import AuthenticationError, InvalidResponseError
from django_moe_personalize.moengage.client import read_answer, read_experience, read_fetch, read_metadata
from django_moe_personalize.moengage.errors import build_error
from django_moe_personalize.moengage.http1 import MAX_BYTES, Response, is_light
from django_moe_personalize.moengage.json_values import (
    MAX_DEPTH,
    MAX_LIGHT_VALUES,
    MAX_MEMBERS,
    MAX_VALUES,
    Budget,
    OversizeError,
)
from django_moe_personalize.moengage.types import ExperienceFailure, FailureReason, UnreadableExperience


def build_list(count: int) -> dict[str, object]:
    """Return an experience with this number of values: itself, its payload, the list and the items."""
    return {"payload": {"list": [1] * (count - 2)}}


@pytest.mark.parametrize("name", hostile.BUILDERS)
def test_little_is_built(name):
    """The reader takes little memory, because it counts the values before it builds them."""
    body = hostile.build(name, "hero")
    assert MAX_BYTES * 0.9 < len(body) <= MAX_BYTES
    tracemalloc.start()
    try:
        result = read_fetch(body, ("hero", "promo"))
    except InvalidResponseError:
        result = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * MAX_BYTES
    assert (result is not None and "hero" in result.experiences) == (name in hostile.SMALL)


@pytest.mark.parametrize("name", ["empty objects", "offerings in a text", "hidden JSON", "deep lists", "variables"])
def test_a_large_experience_costs_only_itself(name):
    """The experience is absent, for a reason that names it. The next experience is there."""
    body = hostile.build(name, "hero")[:-2] + b',"promo":{"payload":{"Text":"Hi"}}}}'
    result = read_answer(Response(200, {}, body), ["hero", "promo"])
    assert {key: dict(found) for key, found in result.experiences.items()} == {"promo": {"Text": "Hi"}}
    problem = f"the response has more than {MAX_VALUES} values"
    assert result.failures == (UnreadableExperience(FailureReason.PERSONALIZATION_FAILED, ("hero",), problem),)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("1e999", "it holds a number that is too large"),
        ("9" * 301, "it holds a number that is too large"),
        ("NaN", "it holds NaN or Infinity"),
        ('{"a":1,"a":2}', "an object repeats a name"),
        ('"\x00"', "it is not JSON: Invalid control character at at character 18"),
    ],
    ids=["float", "integer", "nan", "names", "text"],
)
def test_a_mistake_in_an_experience_costs_only_itself(value, problem):
    """The other experiences are there, in a small response too."""
    body = f'{{"experiences":{{"bad":{{"payload":{{"it":{value}}}}},"good":{{"payload":{{"Text":"Hi"}}}}}}}}'
    for padding in ("", ",1" * MAX_LIGHT_VALUES):
        result = read_fetch(f'{body[:-1]},"more":[1{padding}]}}'.encode(), ("bad", "good"))
        assert list(result.experiences) == ["good"]
        (failure,) = result.failures
        assert (failure.experience_keys, failure.problem) == (("bad",), problem)


def test_experiences_share_the_values_of_a_response():
    """Experiences are read in the order of the keys. An experience that doesn't fit leaves room for a smaller one."""
    entries = {"half": build_list(MAX_VALUES // 2), "large": build_list(MAX_VALUES), "little": build_list(10)}
    body = json.dumps({"experiences": entries | {"unasked": build_list(MAX_VALUES)}}).encode()
    result = read_fetch(body, ("half", "large", "little", "absent"))
    assert list(result.experiences) == ["half", "little"]
    assert [failure.experience_keys for failure in result.failures] == [("large",)]
    assert list(read_fetch(body, ("large", "half")).experiences) == ["large"]
    assert list(read_fetch(body).experiences) == ["half", "little"]


def test_large_response_is_read_as_a_small_one():
    """Skipping experiences changes nothing: names with escapes, failures, spaces, and entries that aren't objects."""
    entries = {"hero": {"payload": {'"': 1}}, 'a"b': {"payload": {"Text": "}]"}}, "text": "x", "number": 5, "no": None}
    data = {"failures": [{"reason": "x", "experience_keys": ["c"]}], "experiences": entries, "more": []}
    small = read_fetch(json.dumps(data).encode())
    filler = {"unasked": build_list(MAX_LIGHT_VALUES)}
    for indent in (None, 1):
        body = json.dumps(data | {"experiences": entries | filler}, indent=indent).encode()
        assert not is_light(body)
        large = read_fetch(body, tuple(entries))
        assert (large.experiences, large.failures) == (small.experiences, small.failures)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('["experiences"%s]', "not an object"),
        ('{"other":[1%s]}', "«experiences»"),
        ('{"experiences":[1%s]}', "«experiences»"),
        ('{"experiences":{"a":[1%s]}', "doesn't end"),
        ('{"experiences":{"a":[1%s]}} {}', "Extra data"),
        ('{"experiences":{"a":[1%s]},}', "not JSON"),
        ('{"experiences":{"a":[1%s],"a":1}}', "repeats a name"),
        ('{"experiences":{"\\x":[1%s]}}', "not JSON"),
        ('{"experiences":{}, "a": [1%s', "not JSON"),
        (" " * (MAX_BYTES + 1) + "%s", "larger than"),
    ],
)
def test_bad_large_response_is_refused(text, problem):
    """The reader refuses a response whose experiences it can't find."""
    with pytest.raises(InvalidResponseError, match=problem):
        read_fetch((text % (",1" * MAX_LIGHT_VALUES)).encode(), ("hero",))


def test_members_are_bounded():
    """The body and its experiences have at most MAX_MEMBERS members each."""
    entries = {f"k{number}": {"payload": {}} for number in range(MAX_MEMBERS)}
    assert read_fetch(json.dumps({"experiences": entries}).encode(), ("k999",)).experiences.keys() == {"k999"}
    with pytest.raises(OversizeError, match="members"):
        read_fetch(json.dumps({"experiences": entries | {"one": {}}}).encode(), ("k999",))


def test_texts_with_json_take_from_the_same_values():
    """Without a budget, an experience has a budget of its own. Punctuation in a text takes nothing."""
    read_experience("hero", {"payload": {"Text": ",[{" * MAX_VALUES}})
    variables = {f"v{number}": {"value": "[1,2]", "data_type": "json"} for number in range(5)}
    assert read_experience("hero", {"payload": variables}, budget=Budget(10))["v4"] == [1, 2]
    with pytest.raises(OversizeError):
        read_experience("hero", {"payload": variables}, budget=Budget(9))
    deep = {"value": "[" * (MAX_DEPTH + 1), "data_type": "json"}
    assert read_experience("hero", {"payload": {"deep": deep}})["deep"] == deep["value"]


def test_metadata_and_errors_are_bounded():
    """The metadata may have 2,500 rows, and 100,000 rows are refused. A large error keeps its status."""
    row = {"experience_name": "A name", "experience_key": "a-key", "status": "Active"}
    for count, size in ((2_500, 2_500), (100_000, None)):
        body = json.dumps({"metadata": {"experiences": [row] * count}}).encode()
        if size is None:
            with pytest.raises(OversizeError):
                read_metadata(body)
        else:
            assert len(read_metadata(body).experiences) == size
    assert isinstance(build_error(Response(401, {}, hostile.build("empty lists", "x"))), AuthenticationError)
    assert UnreadableExperience(FailureReason.UNKNOWN, ()) != ExperienceFailure(FailureReason.UNKNOWN, ())

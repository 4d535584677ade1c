"""Functions of the site that settings name by their path."""

import pytest

from django_moe_personalize.visitor.hooks import HookError, acall, call
from tests.visitor.conftest import FUNCTIONS


@pytest.mark.parametrize("name", ["answer", "aanswer", "answer_object"])
def test_sync_and_async_functions_can_be_called_both_ways(twin, name):
    """A sync function runs where it may block, and an async one in an event loop."""
    request = twin.build_request(answer="yes")
    assert twin.call(call, acall, f"{FUNCTIONS}.{name}", request, str) == "yes"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fail", "raised LookupError"),
        ("absent", "raised ImportError"),
        ("answer", "returned a value of type str"),
    ],
)
def test_failure_names_the_path_and_types_alone(twin, name, message):
    """The error has no text of the site's exception, which may quote the visitor."""
    request = twin.build_request(answer="ada@example.com")
    with pytest.raises(HookError) as caught:
        twin.call(call, acall, f"{FUNCTIONS}.{name}", request, (int, float))
    assert str(caught.value) == f"{FUNCTIONS}.{name} {message}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ is ("raised" in message)


def test_hook_error_keeps_its_message():
    """An error of our own checks is passed on unchanged."""
    error = HookError("the customer id is too long")
    assert HookError.build("shop.identify", error) is error

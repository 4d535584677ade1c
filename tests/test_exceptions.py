"""The tree of errors is documented, and its errors survive a task queue."""

import copy
import inspect
import pickle

import pytest

from django_moe_personalize import exceptions
from django_moe_personalize.exceptions import APIError, MoePersonalizeError, RateLimitedError, TransportError

TREE = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, MoePersonalizeError)]


@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_keep_their_attributes(travel):
    """A copy of an error, also in another process, has the same message and attributes."""
    error = travel(RateLimitedError("answered 429", title="Slow down", retry_after=30.0))
    assert (type(error), str(error)) == (RateLimitedError, "answered 429")
    assert (error.status, error.title, error.retry_after, error.retryable) == (429, "Slow down", 30.0, True)
    assert str(travel(TransportError("reset"))) == "reset"


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_the_docstring_has_every_error(kind):
    """The tree in the module's docstring has every error."""
    assert f"{kind.__name__} " in exceptions.__doc__


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_codes_are_those_of_moengage(kind):
    """The code of an error is one of MoEngage's (contract §6), and UNKNOWN only where the call is unknown."""
    assert kind.code in {"NETWORK_ERROR", "HTTP_ERROR", "PARSE_ERROR", "UNKNOWN_SERVER_ERROR", "UNKNOWN"}
    assert not issubclass(kind, APIError) or kind is APIError or kind.code != "UNKNOWN"

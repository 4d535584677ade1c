"""The tree of errors, as a caller and a task queue meet it."""

import copy
import inspect
import pickle

import pytest

from django_moe_personalize import exceptions
from django_moe_personalize.exceptions import APIError, MoePersonalizeError, RateLimitedError, TransportError

TREE = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, MoePersonalizeError)]


@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_travel_whole(travel):
    """An error comes out of another process, or a copy, with what it knows."""
    error = travel(RateLimitedError("answered 429", title="Slow down", retry_after=30.0))
    assert (type(error), str(error)) == (RateLimitedError, "answered 429")
    assert (error.status, error.title, error.retry_after, error.retryable) == (429, "Slow down", 30.0, True)
    assert str(travel(TransportError("reset"))) == "reset"


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_tree_is_the_one_in_the_docstring(kind):
    """Every error of the module stands in the docstring's drawing."""
    assert f"{kind.__name__} " in exceptions.__doc__


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_codes_are_the_vendors(kind):
    """An error's code is one of the vendor's own (contract §6)."""
    vendors = {"NETWORK_ERROR", "HTTP_ERROR", "PARSE_ERROR", "UNKNOWN_SERVER_ERROR", "UNKNOWN"}
    assert kind.code in vendors
    assert not issubclass(kind, APIError) or kind is APIError or kind.code != "UNKNOWN"

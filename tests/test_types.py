"""Public types, as Django's templates and a site's code meet them."""

import copy
import inspect
import json
import pickle

import pytest
from django.template import Context, Template

from django_moe_personalize import exceptions, types
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import APIError, MoePersonalizeError, RateLimitedError, TransportError
from django_moe_personalize.moengage.client import read_experience

TREE = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, MoePersonalizeError)]
OFFERS = [
    {"dp_offering_id": str(number), "offering_content": {"title": title}, "offering_context": {"cid": "c"}}
    for number, title in enumerate(["Shoe", "Sock"])
]


def render(source: str, /, **variables: object) -> str:
    """Render a template with an experience that has these payload variables."""
    return Template(source).render(Context({"hero": read_experience("hero", {"payload": variables})}))


@pytest.mark.parametrize(
    ("source", "variables", "expected"),
    [
        ("{{ hero.Title }}", {"Title": "<Hi>"}, "&lt;Hi&gt;"),
        ("{{ hero.Title }}", {}, ""),
        ("{% if hero %}yes{% endif %}", {}, "yes"),
        ("{% for k, v in hero.items %}{{ k }}={{ v }} {% endfor %}", {"a": 1, "b": 2}, "a=1 b=2 "),
        ("{{ hero.items }}", {"items": "three"}, "three"),
        ("{{ hero.payload }} {{ hero.source }}", {"payload": "mine", "source": "ad"}, "mine ad"),
        ("{{ hero.experience_key }}", {}, "hero"),
        ("{% for offer in hero.offerings %}{{ offer.title }} {% endfor %}", {"it": OFFERS}, "Shoe Sock "),
        ("{% for offer in hero.offerings %}{{ offer.title }} {% endfor %}", {"offerings": OFFERS}, "Shoe Sock "),
        ("{% for offer in hero.offerings %}{% empty %}none{% endfor %}", {"offerings": "soon"}, "none"),
        ("{% for offer in hero.offerings %}{% empty %}none{% endfor %}", {}, "none"),
        ("{% for k, v in hero.offerings.0.items %}{{ k }}={{ v }}{% endfor %}", {"it": OFFERS}, "title=Shoe"),
    ],
)
def test_templates_read_variables_first(source, variables, expected):
    """A variable wins over an attribute or a method of the same name; offerings are always the offerings."""
    assert render(source, **variables) == expected


def test_to_dict_is_data_for_scripts():
    """A template can hand the plain data of an experience to a script."""
    html = render('{{ hero.to_dict|json_script:"hero" }}', Title="</script>", it=OFFERS)
    data = json.loads(html.partition(">")[2].removesuffix("</script>"))
    assert data["payload"] == {"Title": "</script>"}
    assert [offering["content"] for offering in data["offerings"]] == [{"title": "Shoe"}, {"title": "Sock"}]


def test_every_error_is_exported():
    """The module has the whole tree of errors, and ConfigurationError."""
    exported = {value for name, value in vars(types).items() if not name.startswith("_")}
    assert {kind for kind in exported if issubclass(kind, Exception)} == {ConfigurationError, *TREE}


@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_keep_their_attributes(travel):
    """A copy of an error, also in another process, has the same message and attributes."""
    error = travel(RateLimitedError("answered 429", title="Slow down", retry_after=30.0))
    assert (type(error), str(error)) == (RateLimitedError, "answered 429")
    assert (error.status, error.title, error.retry_after, error.retryable) == (429, "Slow down", 30.0, True)
    assert str(travel(TransportError("reset"))) == "reset"


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_each_error(kind):
    """The module's docstring has the error. Its code is MoEngage's (contract §6), UNKNOWN only for an unknown call."""
    assert f"{kind.__name__} " in exceptions.__doc__
    assert kind.code in {"NETWORK_ERROR", "HTTP_ERROR", "PARSE_ERROR", "UNKNOWN_SERVER_ERROR", "UNKNOWN"}
    assert not issubclass(kind, APIError) or kind is APIError or kind.code != "UNKNOWN"

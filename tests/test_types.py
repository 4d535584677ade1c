"""Public types, as Django's templates and a site's code meet them."""

import json

import pytest
from django.template import Context, Template

from django_moe_personalize import types
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import MoePersonalizeError
from django_moe_personalize.moengage.client import read_experience

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
    tree, kinds = {ConfigurationError}, [MoePersonalizeError]
    while kinds:
        tree.add(kind := kinds.pop())
        kinds += [below for below in kind.__subclasses__() if below.__module__ == MoePersonalizeError.__module__]
    exported = {getattr(types, name) for name in types.__all__}
    assert {kind for kind in exported if issubclass(kind, Exception)} == tree

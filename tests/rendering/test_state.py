"""State for scripts: what the server showed, as JSON in the page."""

import json
import re
from types import SimpleNamespace

import pytest
from django.template import Context, TemplateSyntaxError, engines
from django.template.loader import render_to_string

from django_moe_personalize.planning import find_template_keys
from django_moe_personalize.schemas import ExperienceSchema, declaration
from django_moe_personalize.testing import override_personalize
from tests.rendering.conftest import LOAD, compile_template

SHOWN = "{% experience 'hero' as h %}{{ h.Title }}{% endexperience %}{% experience_value 'offers' 'Title' %}"


def read_state(html):
    [text] = re.findall(r'<script id="moe-state" type="application/json">(.+?)</script>', html)
    return json.loads(text)


def report(visit, *events):
    visit("/moe/beacon/", method="post", data=json.dumps({"events": events}), content_type="text/plain")


def test_state_has_what_the_page_shows(render, visit, shown):
    """Keys, variations, payloads, offerings and tokens. The state itself counts nothing, and no content ends it."""
    html = render(SHOWN + "{% experience 'nope' %}{% endexperience %}{% personalize_state %}")
    state = read_state(html)
    assert list(state["experiences"]) == ["hero", "offers"]
    hero, offers = state["experiences"].values()
    assert (hero["experience_key"], hero["payload"]["Body"]) == ("hero", "<b>bold</b><script>alert(1)</script>")
    assert hero["variation_id"].isdigit()
    assert [each["offering_id"] for each in offers["offerings"]] == ["offer-1", "offer-2"]
    assert (state["beacon"], shown.impressions) == ("/moe/beacon/", {"hero": 1, "offers": 1})
    report(visit, ["impression", hero["token"]], ["click", hero["token"], "Url"], ["click", hero["token"], "evil"])
    assert shown.impressions == {"hero": 1, "offers": 1}
    assert sum("CLICK" in entry.action.upper() for entry in shown.engine.ledger.entries()) == 1


def test_state_of_keys(render, visit, shown):
    """One call brings the keys. A key that the visitor doesn't have is null. Nothing counts until a script reports."""
    source = "{% personalize_state 'hero' key 'nope' 'hero' %}"
    assert find_template_keys(compile_template(source)) == ("hero", "nope")
    state = read_state(render(source, key="offers"))["experiences"]
    assert (list(state), state["nope"], shown.impressions) == (["hero", "offers", "nope"], None, {})
    report(visit, ["impression", state["hero"]["token"]], ["click", state["offers"]["token"], "offer-2"])
    assert shown.impressions == {"hero": 1}


@pytest.mark.parametrize("source", ["{% personalize_state %}", SHOWN + "{% personalize_state %}"])
def test_page_is_private_if_it_shows_anything(render, visit, source):
    render(source)
    response = visit("/page/")
    assert response.get("Cache-Control") == ("private, no-store" if "experience" in source else None)


def test_state_without_a_request_or_with_nothing_shown(render, settings):
    """A script may read the state of every page."""
    nothing = {"experiences": {}, "beacon": "/moe/beacon/"}
    assert read_state(render("{% personalize_state %}")) == nothing
    assert read_state(render_to_string("page.html")) == nothing
    assert read_state(render("{% personalize_state 'hero' %}", with_urls=False))["beacon"] is None
    text = compile_template("{% personalize_state 'hero' %}").render(Context({"request": SimpleNamespace()}))
    assert read_state(text)["experiences"] == {"hero": None}


@pytest.mark.parametrize("setting", [{"CONSENT": "tests.site.deny_everything"}, {"ENABLED": False}])
def test_state_of_a_visitor_who_gets_nothing(render, setting):
    with override_personalize(**setting):
        assert read_state(render("{% personalize_state 'hero' %}"))["experiences"] == {"hero": None}


def test_visitor_who_is_not_tracked(render):
    """The content is there, without a token."""
    hero = read_state(render("{% personalize_state 'hero' %}", headers={"Sec-GPC": "1"}))["experiences"]["hero"]
    assert (hero["payload"]["Title"], hero["token"]) == ("Hello", None)


def test_tokens_of_the_web_sdk(render, settings):
    """In the mode "web_sdk" the token has the calls of MoEngage's script, as the mark of a tag has them."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IMPRESSIONS": "web_sdk"}
    assert read_state(render("{% personalize_state 'hero' %}"))["experiences"]["hero"]["token"].startswith("%5B%22moe.")


def test_schema(render, monkeypatch):
    """The state has the defaults that a template would show."""
    monkeypatch.setattr(declaration, "_schemas", [])

    class Hero(ExperienceSchema):
        key = "hero"
        Title: int = 7

    assert read_state(render("{% personalize_state 'hero' %}"))["experiences"]["hero"]["payload"]["Title"] == 7


def test_state_in_a_fragment_of_a_cache():
    for tag in ("personalize_state", "personalize_identity"):
        with pytest.raises(TemplateSyntaxError, match=r"inside \{% cache %\}"):
            engines["django"].from_string(LOAD + f"{{% load cache %}}{{% cache 60 x %}}{{% {tag} %}}{{% endcache %}}")

"""Islands: the page is the same for all visitors, and one private request fills its islands."""

import json
import re
from html import unescape
from urllib.parse import quote

import pytest
from django.template import Context, TemplateSyntaxError
from django.test import RequestFactory
from django.utils import translation

from django_moe_personalize import views
from django_moe_personalize.browser import islands
from django_moe_personalize.browser.islands import sign_island
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import Entry
from django_moe_personalize.testing import override_personalize
from tests.rendering.conftest import LOAD, TEMPLATES, compile_template

TEMPLATES |= {
    "moe_personalize/islands/hero.html": LOAD
    + "{% experience 'hero' as h %}<h1>{{ h.Title }} {{ experience_key }}</h1>{% fallback %}plain{% endexperience %}",
    "offers.html": LOAD + "{% experience experience_key as o %}<a href='{% click_url o 'next/' %}'>{{ o.Title }}</a>"
    "{% endexperience %}{% experience 'hero' %}!{% endexperience %}",
}
PAGE = "{% experience_island 'hero' class='wide' %}Welcome{% endexperience_island %}"


def find_tokens(html):
    return re.findall('data-moe-island="([^"]+)"', html)


def ask(visit, *tokens, **more):
    query = "&".join(f"island={quote(token)}" for token in tokens) + "".join(f"&{k}={v}" for k, v in more.items())
    return visit(f"/moe/islands/?{query}")


def test_page_with_an_island_is_the_same_for_all(render, visit, upstream):
    html = render(PAGE + "{% personalize_scripts %}")
    response = visit("/page/", headers={"Cookie": ""})
    assert response.content.decode() == html
    assert (response.has_header("Cache-Control"), response.has_header("Vary"), response.cookies) == (False, False, {})
    assert re.search(r'<div class="wide" data-moe-island="[^"]+">Welcome</div><script src="[^"]+islands.js" ', html)
    assert 'data-url="/moe/islands/" data-names="utm_source utm_medium' in html


def test_one_request_fills_all_islands(render, visit, shown):
    """A visitor without the experience keeps the fallback. The response is private, and counts what it shows."""
    html = render(
        PAGE + "{% experience_island 'offers' template='offers.html' %}{% endexperience_island %}"
        "{% experience_island 'nope' template='offers.html' %}None{% endexperience_island %}"
    )
    hero, offers, nope = find_tokens(html)
    response = ask(visit, hero, offers, nope, "forged", hero, page="/shop/")
    found = response.json()["islands"]
    assert list(found) == [hero, offers, nope, "forged"]
    assert "Hello hero</h1>" in found[hero]
    assert ">For you</a>" in found[offers]
    assert found[nope] is found["forged"] is None
    assert (response["Cache-Control"], "Cookie" in response["Vary"]) == ("private, no-store", True)
    assert shown.impressions == {"hero": 1, "offers": 1}


@pytest.mark.parametrize(
    ("page", "destination"),
    [("/shop/", "/shop/next/"), ("//evil.example/", None), ("/\\evil.example", None), ("https://evil.example/", None)],
)
def test_relative_links_start_at_the_page(render, visit, page, destination):
    """A page of another host, and a page that isn't a path, are ignored."""
    [token] = find_tokens(render("{% experience_island 'offers' template='offers.html' %}{% endexperience_island %}"))
    html = ask(visit, token, page=quote(page)).json()["islands"][token]
    click = visit(unescape(re.search("href='([^']+)'", html)[1]))
    assert (click.status_code, click["Location"]) == (302, destination or "/moe/islands/next/")


seen = []


def note_page(request):
    """Note what an attribute function sees of the request."""
    seen.append(f"{request.path} {request.GET.urlencode()} {request.get_full_path()}")
    return {}


def test_request_stands_for_the_page(render, visit):
    """Attribute functions see the path of the page and its campaigns, also once the route is known."""
    TEMPLATES["nothing.html"] = ""
    token = find_tokens(render(PAGE + "{% experience_island 'x' template='nothing.html' %}{% endexperience_island %}"))
    with override_personalize(ATTRIBUTES=["tests.rendering.test_islands.note_page"]):
        for _ in range(2):
            ask(visit, *token, page="/shop/", utm_source="mail")
    assert set(seen) == {"/shop/ utm_source=mail /shop/?utm_source=mail"}


@pytest.mark.parametrize(
    ("options", "found", "counted"),
    [
        ({}, True, True),
        ({"method": "head"}, None, False),
        ({"headers": {"Sec-Purpose": "prefetch"}}, True, False),
        ({"headers": {"User-Agent": "Googlebot/2.1"}}, True, False),
        ({"headers": {"Sec-GPC": "1"}}, True, False),
        ({"method": "post"}, None, False),
    ],
    ids=["get", "head", "prefetch", "robot", "gpc", "post"],
)
def test_only_a_person_counts(render, visit, shown, options, found, counted):
    """The rules of the other pages hold. The answer is private in any case."""
    [token] = find_tokens(render(PAGE))
    response = visit(f"/moe/islands/?island={quote(token)}", **options)
    assert response.status_code == 405 or response["Cache-Control"] == "private, no-store"
    assert found is None or "Hello" in response.json()["islands"][token]
    assert shown.impressions == ({"hero": 1} if counted else {})


def test_visitor_without_consent_keeps_the_fallbacks(render, visit, shown):
    [token] = find_tokens(render(PAGE))
    with override_personalize(CONSENT="tests.site.deny_everything"):
        response = ask(visit, token)
    assert (response.json()["islands"], shown.impressions) == ({token: None}, {})
    assert "no-store" in response["Cache-Control"]


def test_key_leads_to_no_other_template(render, caplog):
    """An editor may have typed the key. With a template of its own, any key works."""
    island = "{{% experience_island key {} %}}Welcome{{% endexperience_island %}}"
    assert render(island.format(""), key="../../base") == "Welcome"
    assert "'../../base' of an island can't be the name of a template" in caplog.text
    assert find_tokens(render(island.format("template='offers.html'"), key="../../base"))


def test_memory_of_tokens_is_bounded(render, visit, monkeypatch):
    monkeypatch.setattr(islands, "MAX_KNOWN", 2)
    render("")
    tokens = [sign_island(f"key-{n}", "offers.html") for n in range(5)]
    for _ in range(2):
        assert list(ask(visit, *tokens, "forged").json()["islands"]) == [*tokens, "forged"]
    assert len(islands._get_known()) <= 2


def test_island_has_the_language_of_its_page(render, visit):
    TEMPLATES["language.html"] = "{% load i18n %}{% get_current_language as code %}{{ code }}"
    with translation.override("de"):
        token = sign_island("hero", "language.html")
    render("")
    assert ask(visit, token).json()["islands"] == {token: "de"}


def test_islands_give_a_new_visitor_the_id(render, visit, settings):
    """A page that reads an experience gives the id itself."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IDENTIFY": ""}
    [token] = find_tokens(render(PAGE + "{% personalize_scripts %}"))
    assert not visit("/page/").cookies
    assert ask(visit, token).cookies
    visit.forget_cookies()
    render("{% experience 'hero' %}{% endexperience %}" + PAGE + "{% personalize_scripts %}")
    assert visit.client.cookies


def test_proxy_fills_islands(render, visit, settings):
    """With ISLANDS "esi" the proxy asks for each island, whose template has the fallback."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"ISLANDS": "esi"}
    html = render(PAGE + "{% experience_island 'nope' template='offers.html' %}{% endexperience_island %}")
    assert "<esi:remove>Welcome</esi:remove></div>" in html
    urls = [unescape(url) for url in re.findall('<esi:include src="([^"]+)"/>', html)]
    assert all(url.endswith("?page=%2Fpage%2F") for url in urls)
    hero, nope = map(visit, urls)
    assert ("Hello hero" in hero.content.decode(), hero["Cache-Control"]) == (True, "private, no-store")
    assert ("next/" in nope.content.decode(), nope.status_code) == (False, 200)
    assert visit("/moe/islands/forged/").content == b""


def test_proxy_keeps_the_cookie_of_a_new_visitor(render, visit, settings, shown):
    """Each island would make a profile, so nothing counts until the browser has an id."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"ISLANDS": "esi"}
    render(PAGE)
    url = f"/moe/islands/{sign_island('hero', 'moe_personalize/islands/hero.html')}/"
    assert "Hello" in visit(url).content.decode()
    assert shown.impressions == {}
    visit(url)
    assert shown.impressions == {"hero": 1}


def test_island_that_is_switched_off(render, visit, shown):
    """The page around it keeps its fallback, and ESI gets the fallback of the template."""
    render("")
    token = sign_island("hero", "moe_personalize/islands/hero.html")
    assert ask(visit, token).json()["islands"][token]
    get_switch().change((Entry("hero", True, None, "ada", 1.0),))
    assert ask(visit, token).json() == {"islands": {token: None}}
    assert visit(f"/moe/islands/{token}/").content == b"plain"


def test_template_of_an_island_that_is_gone(render, visit, caplog):
    """A cache may still have the page of an old version of the site. The page keeps its fallback."""
    render("")
    token = sign_island("hero", "gone.html")
    assert ask(visit, token).json() == {"islands": {token: None}}
    assert visit(f"/moe/islands/{token}/").content == b""
    assert "The template 'gone.html' of an island doesn't exist" in caplog.text


@pytest.mark.parametrize("how", ["no URLs", "off", "no static files"])
def test_island_that_nothing_can_fill(render, settings, how):
    """The page shows the fallback alone."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"ENABLED": how != "off"}
    settings.STATIC_URL = None if how == "no static files" else settings.STATIC_URL
    assert render(PAGE, with_urls=how != "no URLs") == "Welcome"


def test_template_without_a_request(render):
    """As in an email: the island is the same, but no browser of a visitor has asked for a page."""
    found = find_tokens(render(PAGE))
    assert find_tokens(compile_template(PAGE).render(Context())) == found


def test_request_that_passed_no_middleware(render):
    """The endpoints answer as for a visitor without experiences."""
    token = find_tokens(render(PAGE))[0]
    request = RequestFactory().get("/moe/islands/", {"island": token})
    assert json.loads(views.islands(request).content) == {"islands": {token: None}}
    assert views.island(request, token).content == b"plain"


def test_tokens_of_islands_above_the_limit(render, visit):
    render("")
    tokens = [sign_island(f"key-{n}", "offers.html") for n in range(30)]
    assert list(ask(visit, *tokens).json()["islands"]) == tokens[: views.MAX_ISLANDS]


@pytest.mark.parametrize("arguments", ["", "'hero' 'more'", "'hero' color='red'"])
def test_wrong_arguments(arguments):
    with pytest.raises(TemplateSyntaxError, match=r"Write \{% experience_island"):
        compile_template(f"{{% experience_island {arguments} %}}{{% endexperience_island %}}")

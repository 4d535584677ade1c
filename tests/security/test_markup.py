"""Content can't run scripts or lead to other sites, even if an attacker has the account of a marketer."""

import json
import re
from html import unescape
from urllib.parse import unquote, urljoin, urlsplit

import html5lib
import pytest
from django.template import engines
from django.test import RequestFactory

from django_moe_personalize.context import Personalization
from django_moe_personalize.testing import override_experiences
from tests.security.corpus import CORPUS, FOREIGN, SCHEMES

SOURCE = """{% load moe_personalize %}<main>{% experience key as hero %}
<p>{{ hero.Text }}</p><p title="{{ hero.Text }}">x</p><p>{{ hero.Text|experience_html }}</p>
<a class="content" href="{{ hero.Text|experience_url }}">x</a>
<a class="content" href="{% click_url hero hero.Text element=hero.Text %}" data-moe-click="{{ hero.Text }}">x</a>
{% for offer in hero.offerings %}<i>{{ offer.title }}</i>
<a href="{% click_url hero offer.title offering=offer %}">x</a>{% endfor %}
{{ hero.payload|json_script:"data" }}{% endexperience %}
<p title="{% experience_value key "Text" %}">{% experience_value key "Text" %}</p>
{% experience_value "nope" "Text" default=text %}{% experience_value key "Text" as value %}<b>{{ value }}</b>
{% personalize_scripts %}</main>"""

LINK = """{% load moe_personalize %}{% experience key as hero %}{% click_url hero hero.Text %}{% endexperience %}"""

URLS = re.compile("href|src|action|formaction|data|srcset|ping|background|poster|xlink:href|content")
FORBIDDEN = ["svg", "math", "iframe", "object", "embed", "style", "link", "meta", "base", "form", "input"]
PAGE = "https://testserver/page/"


@pytest.fixture
def render(settings):
    """Return a function that renders a template with this text as content."""
    settings.ALLOWED_HOSTS = ["testserver"]
    settings.ROOT_URLCONF = "tests.site"
    keys = {text: f"text-{number}" for number, text in enumerate(dict.fromkeys(CORPUS))}
    templates = {source: engines["django"].from_string(source) for source in (SOURCE, LINK)}

    def render(text, source=SOURCE):
        request = RequestFactory().get("/page/", secure=True)
        request.personalization = Personalization(request)
        return templates[source].render({"key": keys[text], "text": text}, request)

    with override_experiences({key: build_payload(text) for text, key in keys.items()}):
        yield render


def build_payload(text):
    offering = {
        "dp_offering_id": text,
        "offering_content": {"type": "json", "payload": {"title": text}},
        "offering_context": {"moe_offering_id": text},
    }
    return {"Text": text, "offerings": [offering]}


def find_faults(page):
    """Return the parts of a page that would run a script, load a file or lead to another site."""
    tree = html5lib.parse(page, treebuilder="etree", namespaceHTMLElements=False)
    faults = []
    for element in tree.iter():
        if not isinstance(element.tag, str):
            continue
        faults += [f"{element.tag} {name}" for name in element.attrib if re.match("on|style$|srcdoc$", str(name))]
        if element.tag == "script" and not is_ours(element):
            faults.append("script")
        if element.tag in FORBIDDEN:
            faults.append(element.tag)
        faults += [f"{element.tag} {name}={url!r}" for name, url in element.attrib.items() if leaves(str(name), url)]
        if not element.attrib.get("data-moe-experience", "moe.").startswith("moe."):
            faults.append("forged mark")
    return faults


def is_ours(element):
    return element.attrib.get("type") == "application/json" or element.attrib.get("src", "").startswith("/static/moe_")


def leaves(name, url):
    """Return whether a browser on the page would run the URL or follow it to another host."""
    if not URLS.fullmatch(name):
        return False
    # Browsers remove these characters and turn backslashes: https://url.spec.whatwg.org/#url-parsing
    url = re.sub(r"[\t\r\n]", "", url).strip("".join(map(chr, range(33)))).replace("\\", "/")
    try:
        # To a browser, three slashes before a host are the same as two.
        found = urlsplit(urljoin(PAGE, re.sub(r"^(https?:)?/{2,}", lambda m: f"{m[1] or ''}//", url, flags=re.I)))
    except ValueError:
        return True
    return found.scheme not in ("http", "https") or found.hostname != "testserver"


def test_corpus_is_large():
    """There are more than 300 different texts, and find_faults() finds their faults."""
    assert len(set(CORPUS)) > 300
    raw = [text for text in CORPUS if find_faults(f"<p>{text}</p><p title='{text}'></p><a href=\"{text}\">x</a>")]
    assert len(raw) > 250


@pytest.mark.parametrize("part", range(4))
def test_content_is_no_script_and_no_way_out(render, part):
    """No tag and no filter turns a text into an element, a handler or a foreign address."""
    faults = {text: found for text in CORPUS[part::4] if (found := find_faults(render(text)))}
    assert faults == {}


def test_destinations_of_signed_links(render, client):
    """A link to content redirects within the site, or is not a link."""
    followed = 0
    for text in [*SCHEMES, *FOREIGN]:
        url = render(text, LINK)
        if url.startswith("/moe/click/"):
            response = client.get(url, secure=True)
            followed += 1
            assert response.status_code == 302
            assert not leaves("href", response.headers["Location"]), text
        else:
            assert not leaves("href", unescape(url)), text
    assert followed


def test_json_of_a_mark_is_text(settings):
    """In the mode web_sdk, a mark is one attribute with the calls of MoEngage's script as escaped JSON."""
    settings.ROOT_URLCONF = "tests.site"
    with override_experiences({"hero": {"Text": "x"}}, IMPRESSIONS="web_sdk"):
        request = RequestFactory().get("/page/")
        request.personalization = Personalization(request)
        page = engines["django"].from_string(SOURCE).render({"key": "hero"}, request)
    mark = re.search(r'data-moe-experience="([^"]*)"', page)[1]
    assert json.loads(unquote(mark))[1][0][1]["experience"]

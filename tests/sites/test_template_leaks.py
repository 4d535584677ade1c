"""One visitor's content inside a fragment cache, through the template languages of other libraries."""

import json
import re
import subprocess
import sys

import pytest

LOAD = "{% load cache moe_personalize slippers humanize i18n static wagtailcore_tags wagtailimages_tags"
LOAD += " wagtail_cache wagtailcache_tags wagtailuserbar sekizai_tags cms_tags %}\n"
GAPS = {
    "component": '{% component "hero" / %}',
    "cotton": "<c-hero />",
    "cotton-block": "<c-hero>x</c-hero>",
    "slippers": "{% card %}",
    "slippers-block": "{% #card %}x{% /card %}",
    "include-block": "{% include_block page.body %}",
    "include-block-with": "{% include_block page.body with x=1 %}",
    "include": "{% include which %}",
    "slot": '{% slot "x" %}{% endslot %}',
    "handed-in": "{{ slot }}",
    "userbar": "{% wagtailuserbar %}",
}
HARMLESS = {
    "image": "{% image page.photo width-400 %}{% image page.photo width-400 as photo %}",
    "url": "{% pageurl page %}{% slugurl 'x' %}{% wagtail_site as site %}{{ page.body|richtext }}",
    "django": "{% static 'x' %}{% url 'x' %}{% trans 'x' %}{{ x|intcomma }}{% now 'Y' %}{% csrf_token %}",
    "blocks": "{% for x in y %}{% if x %}{% with a=x %}{% filter upper %}{{ a }}{% endfilter %}{% endwith %}{% endif %}"
    "{% endfor %}{% blocktranslate %}x{% endblocktranslate %}{% block z %}{% endblock %}",
    "include": "{% include 'plain.html' %}{% with which='plain.html' %}{% include which %}{% endwith %}",
    "slippers": "{% fragment as x %}y{% endfragment %}{% var a=1 %}{% attrs a=1 %}",
}
CERTAIN = {
    "include": "{% include 'hero.html' %}",
    "literal": "{% with which='hero.html' %}{% include which %}{% endwith %}",
    "component": '{% component "hero" %}{% fill "x" %}{% include "hero.html" %}{% endfill %}{% endcomponent %}',
    "cotton": "<c-hero><c-slot name='x'>{% include 'hero.html' %}</c-slot></c-hero>",
    "slippers": "{% #card %}{% include 'hero.html' %}{% /card %}",
}
CACHES = {
    "cache": "{{% cache 60 x %}}{}{{% endcache %}}",
    "wagtailcache": "{{% wagtailcache 60 x %}}{}{{% endwagtailcache %}}",
    "wagtailpagecache": "{{% wagtailpagecache 60 x %}}{}{{% endwagtailpagecache %}}",
}
PAGES = {
    f"{kind}-{name}-{cache}.html": LOAD + form.format(source)
    for kind, sources in (("gap", GAPS), ("harmless", HARMLESS), ("certain", CERTAIN))
    for name, source in sources.items()
    for cache, form in CACHES.items()
}
CACHES["placeholder"] = "{{% placeholder 'x' or %}}{}{{% endplaceholder %}}"
TAG = "{% experience_value 'a' 'b' %}"
PAGES |= {f"refused-{cache}.html": LOAD + form.format(TAG) for cache, form in CACHES.items()}
PAGES |= {
    "plain.html": "plain",
    "layout.html": LOAD + "{% wagtailcache 60 x %}\n{% block side %}{% endblock %}{% endwagtailcache %}",
    "child.html": "{% extends layout %}" + LOAD + "{% block side %}{% include 'hero.html' %}{% endblock %}",
    "calm.html": "{% extends layout %}{% block side %}x{% endblock %}{% block other %}{{ y }}{% endblock %}",
    "known.html": "{% extends 'layout.html' %}" + LOAD + "{% block side %}{% include 'hero.html' %}{% endblock %}",
    "cms.html": LOAD + "{% placeholder 'x' or %}{% include 'hero.html' %}{% endplaceholder %}{% placeholder 'y' %}",
    "outside.html": LOAD
    + GAPS["include"]
    + GAPS["slippers"]
    + GAPS["include-block"]
    + "{% cache 60 x %}{% endcache %}",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run the check once with each library of components, and return the messages by their number and page."""
    found = {}
    for library in ("django_components", "django_cotton"):
        is_left = [re.search("component|slot" if "cotton" in library else "cotton", page) for page in PAGES]
        pages = {page: source for (page, source), left in zip(PAGES.items(), is_left, strict=True) if not left}
        for number, message, hint in run_check(tmp_path_factory.mktemp("leaks"), library, pages):
            page = re.search(r"starts in \S*/templates/(\S+?), line", hint)[1]
            messages = found.setdefault((number.rpartition(".")[2], page), [])
            messages += [] if message in messages else [message]
    return found


def run_check(folder, library, pages):
    command = [sys.executable, "-m", "tests.sites.leaks_site", str(folder), library]
    done = subprocess.run(command, check=False, input=json.dumps(pages), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("gap")])
def test_gap_is_a_warning(found, page):
    """One warning names the tag that the check can't follow, its template and its line."""
    [message] = found["W012", page]
    tag = page.split("-")[-1].removesuffix(".html")
    assert message.startswith(f"{{% {tag} %}} may show one visitor's content to all visitors.")
    assert f" in {page}, line 2" in message
    assert ("E014", page) not in found


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("harmless")])
def test_harmless_tag_is_right(found, page):
    """Tags that render no template give no message."""
    assert [key for key in found if key[1] == page] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("certain")])
def test_content_is_an_error(found, page):
    """The check follows literal names and the contents of components."""
    [message] = found["E014", page]
    assert "hero.html, line 1" in message


@pytest.mark.parametrize("cache", CACHES)
def test_tag_is_refused(found, cache):
    """The tags of this package don't compile inside these tags."""
    assert all(f"is inside {{% {cache} %}}" in message for message in found["refused", f"refused-{cache}.html"])


def test_parents(found):
    """A known parent is an error. An unknown parent is a warning if a template caches the block."""
    assert [message.partition("visitors: ")[2] for message in found["E014", "layout.html"]] == [
        '{% experience "hero-banner" as hero %} in hero.html, line 1.'
    ]
    [message] = found["W012", "layout.html"]
    assert "{% extends layout %} in child.html, line 1" in message
    assert "more" not in message


def test_default_of_a_placeholder(found):
    """django CMS caches the default content of a placeholder. A placeholder without a default gives no message."""
    [message] = found["E014", "cms.html"]
    assert message.startswith("{% placeholder %} shows one visitor's content to all visitors")
    assert ("W012", "cms.html") not in found


def test_outside_of_a_cache(found):
    """Outside of a tag that caches, no tag gives a message."""
    assert not [key for key in found if key[1] == "outside.html"]

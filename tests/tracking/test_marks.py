"""Marks in the HTML of a page: where they are added, and where a browser would show them as text."""

import pytest
from django.http import HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import escape

from django_moe_personalize.conf import get_settings
from django_moe_personalize.rendering import seal_response
from django_moe_personalize.tracking.marks import add_mark, find_clickable, remove_misplaced

TEXT = "<!--moe-watch moe.0123456789ab:a--b--->x<!--/moe-->"
ELEMENT = '<b data-moe-experience="moe.0123456789ab:c" data-moe-watch="" class="d">x</b><!--/moe-->'


@pytest.mark.parametrize(
    ("body", "marked"),
    [
        ("text", "<!--moe-watch T-->text<!--/moe-->"),
        (" \n<p class='a'>x</p>", ' \n<p data-moe-experience="T" data-moe-watch="" class=\'a\'>x</p><!--/moe-->'),
        ("<!-- note --><br/>x", '<!-- note --><br data-moe-experience="T" data-moe-watch=""/>x<!--/moe-->'),
        ("</p><p>", "<!--moe-watch T--></p><p><!--/moe-->"),
        (ELEMENT, ELEMENT.replace("moe.", "T moe.", 1) + "<!--/moe-->"),
        (TEXT, f"<!--moe-watch T-->{TEXT}<!--/moe-->"),
    ],
)
def test_mark(body, marked):
    """The first element gets an attribute with the tokens of all experiences that begin with it, the outermost first.

    Before text there is a comment. A streamed page has no comments, because there they couldn't be removed.
    """
    assert add_mark(body, "T", is_watched=True) == marked
    streamed = body if marked.startswith("<!--moe") else marked.removesuffix("<!--/moe-->")
    assert add_mark(body, "T", is_watched=True, has_comments=False) == streamed


def test_only_attributes_of_start_tags_are_clickable():
    """Text, comments, scripts and the values of other attributes name no elements."""
    body = """<b data-moe-click="a&amp;b" x='data-moe-click=no'>data-moe-click=no <!-- <i data-moe-click=no> -->
    <script data-moe-click>"<b data-moe-click=no>"</script>
    <textarea DATA-MOE-CLICK = 'c d'><b data-moe-click=no></textarea>
    <svg><path d="<b data-moe-click=no>"data-moe-click=e/></svg> &lt;i data-moe-click=no> <!-- <b data-moe-click=no>"""
    assert find_clickable(body) == ("a&b", "", "c d", "e/")
    assert find_clickable("<b data-moe-clicks>data-moe-click") == ()


PAGES = [
    "<title>{}</title><p>TEXT</p>",
    "<!doctype html><a title='{} {}' href='a > b'>z</a>TEXT",
    "<script>let a = '{}', b = \"<title>\"; a < b</script>TEXT",
    "<!-- <title> -->TEXT<textarea>a < b {}</textarea>ELEMENT",
    '<div @click="() => a > b" x="1 < 2">ELEMENT</div> 1 < 2 TEXT<STYLE>{}</STYLE>',
    "<meta content='{}'><xmp>{}</xmp><br/>ELEMENT",
    "<!-- {} - -- > <p> -->TEXT<!-- <title> -->ELEMENT",
    "TEXT<a title='{}",
]


@pytest.mark.parametrize(
    ("page", "marked", "plain"),
    [(page, *pair) for page in PAGES for pair in ((TEXT, "x"), (ELEMENT, '<b class="d">x</b>'))]
    + [
        ('<a title="{}" alt={}>z</a>TEXT', TEXT, "x"),
        ("<pre>{}{}</pre>", escape(ELEMENT + TEXT), escape('<b class="d">x</b>x')),
    ],
)
def test_marks_that_would_be_text_are_removed(page, marked, plain):
    """In attributes and in elements that contain text, and nowhere else. The response keeps its right length."""
    page = page.replace("TEXT", TEXT).replace("ELEMENT", ELEMENT)
    response = HttpResponse(page.replace("{}", marked), headers={"Content-Length": "1"})
    remove_misplaced(response)
    assert response.text == page.replace("{}", plain)
    assert response.headers["Content-Length"] == str(len(response.content))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("text/plain", "x"), ("text/vnd.turbo-stream.html", TEXT), ("application/json", TEXT), ("text/javascript", TEXT)],
)
def test_other_types_of_responses(kind, text):
    """A plain text has no marks. JSON and scripts may carry HTML."""
    response = HttpResponse(TEXT, content_type=kind)
    remove_misplaced(response)
    assert response.text == text


def test_response_that_is_not_rendered():
    """A middleware of the site may return such a response, for a middleware above that renders it."""
    response = TemplateResponse(None, "page.html")
    seal_response(response, get_settings())
    assert not response.is_rendered

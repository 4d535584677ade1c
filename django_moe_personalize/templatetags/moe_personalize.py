"""The tag library ``{% load moe_personalize %}``. The tags find the page and its experience, and call ``rendering``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import template
from django.template import Context, Node, NodeList, TemplateSyntaxError
from django.template.base import FilterExpression, Parser, Token, token_kwargs
from django.utils.functional import Promise
from django.utils.html import conditional_escape
from django.utils.safestring import SafeString

from django_moe_personalize import planning, rendering, tracking
from django_moe_personalize.browser.identity import find_customer_id, render_identity
from django_moe_personalize.browser.islands import HAS_ISLANDS, render_island
from django_moe_personalize.browser.state import render_state
from django_moe_personalize.context import get_page, give_id
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.rendering import render_experience
from django_moe_personalize.runtime import log_once
from django_moe_personalize.schemas import find_schema, get_schemas
from django_moe_personalize.templatetags.caches import PLACEHOLDERS, is_cache
from django_moe_personalize.templatetags.pages import find_experience, find_page, find_request, find_typed
from django_moe_personalize.tracking.destinations import get_allowed_hosts, is_safe_url, quote_url

register = template.Library()

EXPERIENCE_FORM = '{% experience "key" as name %}…{% fallback %}…{% endexperience %}'
VALUE_FORM = '{% experience_value "key" "Variable" default="…" %}'
ISLAND_FORM = '{% experience_island "key" [template="…"] [class="…"] %}…fallback…{% endexperience_island %}'
CLICK_FORM = "{% click_url hero '/sale/' element='cta' %}"

_LITERALS = (str, Promise)
_ESCAPES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&#39;", "'"), ("&amp;", "&"))


def undo_escape(value: object) -> str:
    """Return the text of a value. A safe string is HTML, for example because ``{% firstof … as %}`` has escaped it."""
    text = str(value)
    if isinstance(value, SafeString) and "&" in text:
        # These are the escapes of Django. "".join() makes a plain str, which Django escapes again.
        for escaped, character in _ESCAPES:
            text = text.replace(escaped, character)
    return "".join(text)


def find_text(expression: FilterExpression, context: Context) -> str:
    """Return the value of an argument as text. The literal of a template's author is text as it is."""
    value = expression.resolve(context)
    return str(value) if isinstance(expression.var, _LITERALS) else undo_escape(value)


class ExperienceNode(Node):
    """``{% experience %}``: render the body if the visitor has the experience. Otherwise render the fallback."""

    child_nodelists = ("body", "fallback")
    find = staticmethod(find_experience)

    def __init__(
        self, key: FilterExpression, name: str, body: NodeList, fallback: NodeList, *, is_filtered: bool = False
    ) -> None:
        self.key = key
        self.experience_key = planning.get_literal(key)
        self.name = name
        self.body = body
        self.fallback = fallback
        self.is_filtered = is_filtered

    def __iter__(self) -> Iterator[Node]:
        yield from (*self.body, *self.fallback)

    def render(self, context: Context) -> SafeString:
        """Return the body, and record that the page shows the experience. Without one, return the fallback."""
        page, experience = self.find(context, self.experience_key or self.key.resolve(context))
        if page is None or experience is None:
            return self.fallback.render(context)
        with context.push({self.name: experience}):
            body = self.body.render(context)
        if self.is_filtered:
            page.tracker.rendered.setdefault(experience.experience_key, experience)
            return body
        return render_experience(page.tracker, experience, body, is_streamed=page.is_streamed)


class TypedExperienceNode(ExperienceNode):
    """``{% experience %}`` on a site with schemas, if the key has a schema or is a variable."""

    find = staticmethod(find_typed)


def parse_arguments(
    parser: Parser, bits: list[str], form: str, *allowed: str
) -> tuple[FilterExpression, FilterExpression, dict[str, FilterExpression]]:
    """Return the two positional arguments of a tag and its options. An error shows ``form``, the right form."""
    tag, *bits = bits
    refuse_fragment_cache(parser, tag)
    options = token_kwargs(bits[2:], parser)
    if len(bits) < 2 or len(options) != len(bits) - 2 or not options.keys() <= {*allowed}:
        raise TemplateSyntaxError(f"Wrong arguments of {{% {tag} %}}. Write {form}")
    return parser.compile_filter(bits[0]), parser.compile_filter(bits[1]), options


def refuse_fragment_cache(parser: Parser, tag: str) -> None:
    """Raise TemplateSyntaxError for a tag inside a block tag that caches, such as ``{% cache %}``.

    The cache would show one visitor's content to all visitors, or repeat the CSP nonce of one page.
    """
    for command, _ in parser.command_stack:
        if is_cache(command, parser.tags.get(command)):
            message = (
                f"{{% {tag} %}} is inside {{% {command} %}}, which would show one visitor's content to all visitors. "
                f"Move {{% {tag} %}} out of {{% {command} %}}, and cache only content that is the same for all."
            )
            hint = f" If {{% {command} %}} caches nothing, register it under a name without the word cache."
            raise TemplateSyntaxError(message + hint * (command not in PLACEHOLDERS))


@register.tag
def experience(parser: Parser, token: Token) -> ExperienceNode:
    """Parse ``{% experience KEY [as NAME] %}…{% fallback %}…{% endexperience %}``. NAME defaults to ``experience``."""
    refuse_fragment_cache(parser, "experience")
    match token.split_contents():
        case [_, key]:
            name = "experience"
        case [_, key, "as", name] if name.isidentifier():
            pass
        case _:
            raise TemplateSyntaxError(f"Wrong arguments of {{% experience %}}. Write {EXPERIENCE_FORM}")
    body = parser.parse(("fallback", "endexperience"))
    fallback = NodeList()
    if parser.next_token().contents == "fallback":
        fallback = parser.parse(("endexperience",))
        parser.delete_first_token()
    # A filter around the tag would change the mark: it would cut the mark off, or show the mark as text.
    is_filtered = any(command == "filter" for command, _ in parser.command_stack)
    expression = parser.compile_filter(key)
    # Chosen once for a compiled template, so that a page without schemas runs no line more.
    node = TypedExperienceNode if _is_typed(expression) else ExperienceNode
    return node(expression, name, body, fallback, is_filtered=is_filtered)


def _is_typed(key: FilterExpression) -> bool:
    literal = planning.get_literal(key)
    return bool(get_schemas()) if literal is None else find_schema(literal) is not None


@register.tag
def fallback(parser: Parser, token: Token) -> Node:
    """Refuse a ``{% fallback %}`` outside of ``{% experience %}``, and a second ``{% fallback %}`` inside."""
    raise TemplateSyntaxError(f"Misplaced {{% fallback %}}. Write it once, as in {EXPERIENCE_FORM}")


class ExperienceValueNode(Node):
    """``{% experience_value %}``: render one variable of the payload, or the default."""

    find = staticmethod(find_experience)

    def __init__(
        self, key: FilterExpression, variable: FilterExpression, default: FilterExpression | None, name: str
    ) -> None:
        self.key = key
        self.experience_key = planning.get_literal(key)
        self.variable = variable
        self.variable_name = planning.get_literal(variable)
        self.default = default
        self.name = name

    def render(self, context: Context) -> str:
        """Return the escaped value, and record that the page shows the experience. Or return the default."""
        # Most tags show a short text of an experience that the page has already. They need 90 bytecodes instead of 180.
        try:
            page = context.request.personalization._page  # type: ignore[attr-defined]
            known = page.known
            if known.get("user") is page.user and (page._evidence is None or len(known) == page._evidence.size):
                experience = page._answers[self.experience_key]
                value = experience.payload[self.variable_name]
                if value.__class__ is str and len(value) <= rendering.MAX_REMEMBERED_TEXT:
                    (page._tracker or page.tracker).rendered.setdefault(self.experience_key, experience)
                    return rendering._escape(value)
        except (AttributeError, KeyError):
            # The page, the experience or the variable doesn't exist yet.
            pass
        return rendering.render_value(self.find_value(context))

    def find_value(self, context: Context) -> Any:
        """Return the value as it is in the payload, and record that the page shows the experience. Or the default."""
        variable = self.variable_name or self.variable.resolve(context)
        page, experience = self.find(context, self.experience_key or self.key.resolve(context))
        if page is not None and experience is not None:
            value = experience.payload.get(variable)
            if value is not None:
                page.tracker.rendered.setdefault(experience.experience_key, experience)
                return value
            report_missing(experience.experience_key, variable)
        return "" if self.default is None else self.default.resolve(context)


def report_missing(key: object, variable: object) -> None:
    """Log once that an experience has no such variable."""
    message = "The experience %r has no variable %r, so its default is shown. Check the name in the template."
    log_once(("variable", key, variable), message, key, variable)


class NamedValueNode(ExperienceValueNode):
    """``{% experience_value … as NAME %}``: store the text in the context instead of rendering it."""

    def render(self, context: Context) -> str:
        """Store the text as the variable ``name``. The template escapes it where it shows the variable."""
        context[self.name] = str(self.find_value(context))
        return ""


class IslandNode(Node):
    """``{% experience_island %}``: render the fallback, and let the browser or a proxy ask for the experience."""

    child_nodelists = ("fallback",)

    def __init__(self, key: FilterExpression, options: dict[str, FilterExpression], fallback: NodeList) -> None:
        self.key = key
        self.island_key = planning.get_literal(key)
        self.options = options
        self.fallback = fallback

    def render(self, context: Context) -> SafeString:
        """Return the island. It has nothing of the visitor, so caches may keep the page."""
        template, css_class = (
            str(self.options[name].resolve(context)) if name in self.options else "" for name in ("template", "class")
        )
        key, fallback = str(self.key.resolve(context)), self.fallback.render(context)
        return render_island(find_request(context), key, fallback, template, css_class)


@register.tag
def experience_island(parser: Parser, token: Token) -> IslandNode:
    """Parse ``{% experience_island KEY [template=…] [class=…] %}…{% endexperience_island %}``."""
    _, *bits = token.split_contents()
    options = token_kwargs(rest := bits[1:], parser)
    if not bits or rest or not options.keys() <= {"template", "class"}:
        raise TemplateSyntaxError(f"Wrong arguments of {{% experience_island %}}. Write {ISLAND_FORM}")
    fallback = parser.parse(("endexperience_island",))
    parser.delete_first_token()
    return IslandNode(parser.compile_filter(bits[0]), options, fallback)


@register.tag
def experience_value(parser: Parser, token: Token) -> ExperienceValueNode:
    """Parse ``{% experience_value KEY VARIABLE [default=…] [as NAME] %}``."""
    bits, name = token.split_contents(), ""
    if bits[-2:-1] == ["as"] and bits[-1].isidentifier():
        *bits, _, name = bits
    key, variable, options = parse_arguments(parser, bits, VALUE_FORM, "default")
    node = NamedValueNode if name else ExperienceValueNode
    value = node(key, variable, options.get("default"), name)
    if _is_typed(key):
        # Without this name, render() never takes its short way, which knows no schema.
        value.find, value.variable_name = find_typed, None
    return value


class ClickURLNode(Node):
    """``{% click_url %}``: render the URL of a link that counts clicks."""

    def __init__(
        self, target: FilterExpression, destination: FilterExpression, options: dict[str, FilterExpression]
    ) -> None:
        self.target = target
        self.destination = destination
        self.element, self.offering = options.get("element"), options.get("offering")
        # The template's author wrote the literal, or its translation. A filter may append content to the literal.
        self.literal = destination.var if isinstance(destination.var, _LITERALS) else ""

    def render(self, context: Context) -> str:
        """Return the escaped URL, or the escaped destination if the click can't be counted."""
        target = self.target.resolve(context, ignore_failures=True)
        offering = self.offering.resolve(context) if self.offering else None
        page = find_page(context)
        if page is not None:
            page.confirm()
        url = rendering.build_click_url(
            find_request(context),
            None if page is None else page.tracker,
            target if isinstance(target, Experience) else None,
            find_text(self.destination, context),
            written=str(self.literal),
            element=find_text(self.element, context) if self.element else "",
            offering=offering if isinstance(offering, Offering) else None,
        )
        return conditional_escape(url)


@register.tag
def click_url(parser: Parser, token: Token) -> ClickURLNode:
    """Parse ``{% click_url EXPERIENCE DESTINATION [element=…] [offering=…] %}``."""
    return ClickURLNode(*parse_arguments(parser, token.split_contents(), CLICK_FORM, "element", "offering"))


class ScriptsNode(Node):
    """``{% personalize_scripts %}``: render the script tag, which has the CSP nonce of this page."""

    def render(self, context: Context) -> SafeString:
        """Return the script tag.

        The page may load personalized parts, so its response gives a new anonymous visitor the id for all parts.
        """
        request, shown = find_request(context), list[str]()
        if request is not None and (page := get_page(request)) is not None:
            # On a page with islands, the request for the islands gives the id, so that caches may keep the page.
            if page.is_read or HAS_ISLANDS not in request.__dict__:
                give_id(page)
            if tracking.is_speculative(request):
                shown = page.tracker.sign_shown()
        return rendering.render_scripts(request, shown)


@register.tag
def personalize_scripts(parser: Parser, token: Token) -> ScriptsNode:
    """Add the script that reports views, and clicks on ``data-moe-click`` elements. Use it once, at the page's end."""
    refuse_fragment_cache(parser, "personalize_scripts")
    if len(token.split_contents()) > 1:
        raise TemplateSyntaxError("{% personalize_scripts %} takes no arguments.")
    return ScriptsNode()


class KeyNode(Node):
    """A key of ``{% personalize_state %}``, where planning.find_template_keys() looks for it."""

    def __init__(self, key: FilterExpression, token: Token, origin: Any) -> None:
        self.key = key
        self.experience_key = planning.get_literal(key)
        self.token = token
        self.origin = origin


class StateNode(Node):
    """``{% personalize_state %}``: write what the page shows as JSON for scripts."""

    child_nodelists = ("keys",)

    def __init__(self, keys: NodeList) -> None:
        self.keys = keys

    def render(self, context: Context) -> SafeString:
        """Return the experiences of the keys. Without keys, return the experiences that the page has shown so far."""
        found = {str(node.key.resolve(context)): None for node in self.keys}  # type: ignore[attr-defined]
        page = find_page(context)
        if page is None:
            return render_state(None, found)
        return render_state(page, {key: find_typed(context, key)[1] for key in found} or page.tracker.list_shown())


@register.tag
def personalize_state(parser: Parser, token: Token) -> StateNode:
    """Parse ``{% personalize_state [KEY …] %}``. Without keys, use it behind the tags that show experiences."""
    refuse_fragment_cache(parser, "personalize_state")
    _, *keys = token.split_contents()
    return StateNode(NodeList(KeyNode(parser.compile_filter(key), token, parser.origin) for key in keys))


class IdentityNode(Node):
    """``{% personalize_identity %}``: render the script tag that tells MoEngage's Web SDK who the visitor is."""

    def render(self, context: Context) -> SafeString:
        """Return the script tag, or nothing if the visitor can't be known now."""
        request, page = find_request(context), find_page(context)
        customer_id = None if request is None or page is None else find_customer_id(page, request)
        return SafeString("") if request is None or customer_id is None else render_identity(request, customer_id)


@register.tag
def personalize_identity(parser: Parser, token: Token) -> IdentityNode:
    """Keep MoEngage's Web SDK in step with sign-in, sign-out and consent. Use it once, before personalize_scripts."""
    refuse_fragment_cache(parser, "personalize_identity")
    if len(token.split_contents()) > 1:
        raise TemplateSyntaxError("{% personalize_identity %} takes no arguments.")
    return IdentityNode()


@register.filter
def experience_html(value: object) -> SafeString:
    """Return HTML from the dashboard. The library nh3 cleans the HTML. Without nh3 the HTML is escaped."""
    return rendering.render_html(value)


@register.filter
def experience_url(value: object) -> str:
    """Return a URL from the dashboard if it is relative or leads to CONTENT_HOSTS. Otherwise return ``#``."""
    url = undo_escape(value)
    return quote_url(url) if is_safe_url(url, get_allowed_hosts(None)) else rendering.NOWHERE

"""The tag library ``{% load moe_personalize %}``. The tags find the page and its experience, and call ``rendering``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import template
from django.http import HttpRequest
from django.template import Context, Node, NodeList, TemplateSyntaxError
from django.template.base import FilterExpression, Parser, Token, token_kwargs
from django.utils.html import conditional_escape
from django.utils.safestring import SafeString

from django_moe_personalize import planning, rendering
from django_moe_personalize.context import get_page
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.page import Page
from django_moe_personalize.runtime import log_once

register = template.Library()

EXPERIENCE_FORM = '{% experience "key" as name %}…{% fallback %}…{% endexperience %}'
VALUE_FORM = '{% experience_value "key" "Variable" default="…" %}'
CLICK_FORM = "{% click_url hero '/sale/' element='cta' %}"


def find_request(context: Context) -> HttpRequest | None:
    """Return the request of a template's context, or ``None``, for example in an email."""
    request: HttpRequest | None = getattr(context, "request", None) or context.get("request")
    return request


def find_page(context: Context) -> Page | None:
    """Return the page of a template's request, or ``None`` if the request didn't pass the middleware."""
    page = get_page(find_request(context))
    if page is None:
        message = (
            "A template with personalization tags has no request that passed PersonalizeMiddleware, so it shows its "
            "fallbacks. Render it with render(request, …), and put the middleware into MIDDLEWARE."
        )
        log_once("request", message)
    return page


def find_experience(context: Context, key: object) -> tuple[Page | None, Experience | None]:
    """Return the page and its experience. The first call fetches all experiences that the template needs."""
    page = find_page(context)
    if page is None or not isinstance(key, str):
        return page, None
    return page, page.find(key, context.template)


class ExperienceNode(Node):
    """``{% experience %}``: render the body if the visitor has the experience. Otherwise render the fallback."""

    child_nodelists = ("body", "fallback")

    def __init__(self, key: FilterExpression, name: str, body: NodeList, fallback: NodeList) -> None:
        self.key = key
        self.experience_key = planning.get_literal(key)
        self.name = name
        self.body = body
        self.fallback = fallback

    def __iter__(self) -> Iterator[Node]:
        yield from (*self.body, *self.fallback)

    def render(self, context: Context) -> SafeString:
        """Return the body, and record that the page shows the experience. Without one, return the fallback."""
        page, experience = find_experience(context, self.experience_key or self.key.resolve(context))
        if page is None or experience is None:
            return self.fallback.render(context)
        with context.push({self.name: experience}):
            body = self.body.render(context)
        return rendering.render_experience(page.tracker, experience, body)


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
    """Raise TemplateSyntaxError for a tag inside ``{% cache %}``, which would show one visitor's content to all."""
    if any(command == "cache" for command, _ in parser.command_stack):
        raise TemplateSyntaxError(
            f"{{% {tag} %}} is inside {{% cache %}}, which would show one visitor's content to all visitors. "
            f"Put {{% cache %}} inside {{% {tag} %}} or next to it, around content that is the same for all."
        )


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
    return ExperienceNode(parser.compile_filter(key), name, body, fallback)


@register.tag
def fallback(parser: Parser, token: Token) -> Node:
    """Refuse a ``{% fallback %}`` outside of ``{% experience %}``, and a second ``{% fallback %}`` inside."""
    raise TemplateSyntaxError(f"Misplaced {{% fallback %}}. Write it once, as in {EXPERIENCE_FORM}")


class ExperienceValueNode(Node):
    """``{% experience_value %}``: render one variable of the payload, or the default."""

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
        key: Any = self.experience_key or self.key.resolve(context)
        variable = self.variable_name or self.variable.resolve(context)
        page, experience = find_experience(context, key)
        if page is not None and experience is not None:
            value = experience.payload.get(variable)
            if value is not None:
                return rendering.render_value(page.tracker, experience, value)
            message = "The experience %r has no variable %r, so its default is shown. Check the name in the template."
            log_once(("variable", key, variable), message, key, variable)
        return "" if self.default is None else conditional_escape(self.default.resolve(context))


class NamedValueNode(ExperienceValueNode):
    """``{% experience_value … as NAME %}``: store the text in the context instead of rendering it."""

    def render(self, context: Context) -> str:
        """Store the text as the variable ``name``."""
        context[self.name] = super().render(context)
        return ""


@register.tag
def experience_value(parser: Parser, token: Token) -> ExperienceValueNode:
    """Parse ``{% experience_value KEY VARIABLE [default=…] [as NAME] %}``."""
    bits, name = token.split_contents(), ""
    if bits[-2:-1] == ["as"] and bits[-1].isidentifier():
        *bits, _, name = bits
    key, variable, options = parse_arguments(parser, bits, VALUE_FORM, "default")
    node = NamedValueNode if name else ExperienceValueNode
    return node(key, variable, options.get("default"), name)


class ClickURLNode(Node):
    """``{% click_url %}``: render the URL of a link that counts clicks."""

    def __init__(
        self, target: FilterExpression, destination: FilterExpression, options: dict[str, FilterExpression]
    ) -> None:
        self.target = target
        self.destination = destination
        self.options = options

    def render(self, context: Context) -> str:
        """Return the escaped URL, or the escaped destination if the click can't be counted."""
        target = self.target.resolve(context, ignore_failures=True)
        destination = str(self.destination.resolve(context))
        literal = self.destination.var
        options = {name: value.resolve(context) for name, value in self.options.items()}
        offering = options.get("offering")
        page = find_page(context)
        if page is not None:
            page.confirm()
        url = rendering.build_click_url(
            find_request(context),
            None if page is None else page.tracker,
            target if isinstance(target, Experience) else None,
            destination,
            # The template's author wrote the literal. A filter may append content to the literal. If a filter changes
            # the host, the destination isn't trusted.
            trusted=isinstance(literal, str) and rendering.find_host(literal) == rendering.find_host(destination),
            element=str(options.get("element") or ""),
            offering=offering if isinstance(offering, Offering) else None,
        )
        return conditional_escape(url)


@register.tag
def click_url(parser: Parser, token: Token) -> ClickURLNode:
    """Parse ``{% click_url EXPERIENCE DESTINATION [element=…] [offering=…] %}``."""
    return ClickURLNode(*parse_arguments(parser, token.split_contents(), CLICK_FORM, "element", "offering"))


@register.simple_tag(takes_context=True)
def personalize_scripts(context: Context) -> SafeString:
    """Add the script that reports views, and clicks on ``data-moe-click`` elements. Use it once, at the page's end."""
    return rendering.render_scripts(find_request(context))


@register.filter
def experience_html(value: object) -> SafeString:
    """Return HTML from the dashboard. The library nh3 cleans the HTML. Without nh3 the HTML is escaped."""
    return rendering.render_html(value)


@register.filter
def experience_url(value: object) -> str:
    """Return a URL from the dashboard if it is relative or leads to CONTENT_HOSTS. Otherwise return ``#``."""
    url = str(value)
    return url if rendering.is_safe_url(url, rendering.get_allowed_hosts(None)) else rendering.NOWHERE

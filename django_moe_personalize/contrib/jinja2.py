"""The extension for Jinja2: ``{% experience %}``, and globals and filters that mirror the tag library."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from django.template import engines
from django.utils.safestring import SafeString
from jinja2 import Environment, Template, TemplateError, TemplateNotFound, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.meta import find_referenced_templates
from jinja2.parser import Parser
from jinja2.runtime import Context
from markupsafe import Markup

from django_moe_personalize import rendering
from django_moe_personalize.browser.islands import render_island
from django_moe_personalize.browser.state import render_state
from django_moe_personalize.checks.finders import Usage, register_finder, report_unread
from django_moe_personalize.context import get_page
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.page import Page
from django_moe_personalize.planning import find_template_keys
from django_moe_personalize.templatetags import caches, pages
from django_moe_personalize.templatetags import moe_personalize as tags

ROOT: Final = "_moe_template"
"""The variable with the template that renders the page. An included template has it too."""

_PLAN = "moe_plan"
"""The constant in the Python code of a template: its keys, and the names of its parents and includes."""


class Literal(str):
    """A destination that the template's author has written."""

    __slots__ = ()


class PersonalizeExtension(Extension):
    """Add the package's tag, globals and filters to an environment of Jinja2: ``extensions=[PersonalizeExtension]``.

    The extension finds the keys when Jinja2 compiles a template, so bytecode caches and ``from_string()`` work too.
    """

    tags = {"experience", "experience_island"}  # noqa: RUF012 - Jinja2 declares it in this way.

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        values = (experience_value, click_url, personalize_scripts, personalize_state, personalize_identity)
        environment.globals.update({value.__name__: value for value in values})
        environment.filters.update(experience_html=tags.experience_html, experience_url=experience_url)
        generator, template = environment.code_generator_class, environment.template_class
        environment.code_generator_class = type("Generator", (_Generator, generator), {})
        environment.template_class = type("Template", (_Template, template), {})

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse ``{% experience KEY [as NAME] %}…{% fallback %}…{% endexperience %}``, or the tag of an island."""
        token = next(parser.stream)
        if token.value == "experience_island":
            return self._parse_island(parser, token.lineno)
        line, opened = token.lineno, parser._tag_stack
        for tag in opened[:-1]:
            if caches.is_cache(tag, parser.extensions.get(tag)):
                message = (
                    "{% experience %} is inside {% TAG %}, which would show one visitor's content to all visitors."
                )
                parser.fail(message.replace("TAG", tag) + " Move {% experience %} out of it.", line)
        key, name = parser.parse_expression(), "experience"
        if parser.stream.skip_if("name:as"):
            name = parser.stream.expect("name").value
        body, fallback = parser.parse_statements(("name:fallback", "name:endexperience")), list[nodes.Node]()
        if next(parser.stream).value == "fallback":
            fallback = parser.parse_statements(("name:endexperience",), drop_needle=True)
        found, shown = parser.free_identifier(), parser.free_identifier()
        arguments = [found, shown, nodes.Const("filter" in opened)]
        target = nodes.Name(name, "param")
        is_there = nodes.Not(nodes.Test(found, "none", [], [], None, None))
        block = nodes.AssignBlock(shown, None, [nodes.With([target], [found], body)])
        output = nodes.Output([self.call_method("show", arguments)])
        find: list[nodes.Node] = [
            nodes.Assign(found, self.call_method("find", [key])),
            nodes.If(is_there, [block, output], [], [nodes.Scope(fallback)]),
        ]
        return [node.set_lineno(line) for node in find]

    def _parse_island(self, parser: Parser, line: int) -> list[nodes.Node]:
        """Parse ``{% experience_island KEY [template=…] [class=…] %}…fallback…{% endexperience_island %}``."""
        key, options = parser.parse_expression(), {"template": nodes.Const(""), "class": nodes.Const("")}
        while parser.stream.current.test_any("name:template", "name:class"):
            name = next(parser.stream).value
            parser.stream.expect("assign")
            options[name] = parser.parse_expression()  # type: ignore[assignment]
        shown = parser.free_identifier()
        fallback = parser.parse_statements(("name:endexperience_island",), drop_needle=True)
        output = nodes.Output([self.call_method("show_island", [key, shown, *options.values()])])
        block: list[nodes.Node] = [nodes.AssignBlock(shown, None, fallback), output]
        return [node.set_lineno(line) for node in block]

    @pass_context
    def show_island(self, context: Context, key: object, fallback: str, template: object, css_class: object) -> str:
        """Return the island, which caches may keep."""
        request = pages.find_request(cast(Any, context))
        return render_island(request, str(key), SafeString(fallback), str(template), str(css_class))

    @pass_context
    def find(self, context: Context, key: object) -> Any:
        """Return the experience. With ``enable_async`` the template may wait in an event loop."""
        return _find(context, pages.find_page(cast(Any, context)), key)

    @pass_context
    def show(self, context: Context, experience: Experience, body: str, is_filtered: bool) -> str:
        """Record that the page shows the experience, and return its body with the marks."""
        page = cast(Page, pages.find_page(cast(Any, context)))
        if is_filtered:
            page.tracker.rendered.setdefault(experience.experience_key, experience)
            return body
        html = SafeString(body)
        return rendering.render_experience(page.tracker, experience, html, is_streamed=page.is_streamed)

    def write(self, text: str) -> Literal:
        """Return a destination as a text that the template's author has written."""
        return Literal(text)


class _Generator(CodeGenerator):
    """Write the plan of a template into its Python code, and mark the destinations that its author has written."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        """Write the code of the template, and then its plan."""
        keys = [key for key, _ in _find_keys(node, has_islands=False)]
        for call in node.find_all(nodes.Call):
            if getattr(call.node, "name", "") == "click_url":
                call.args[1:2] = [_mark(argument) for argument in call.args[1:2]]
        names = [name for name in find_referenced_templates(node) if name]
        super().visit_Template(node, frame)
        self.writeline(f"{_PLAN} = {keys!r}, {names!r}")


Pair = tuple[str, nodes.Expr]


def _find_keys(node: nodes.Template, *, has_islands: bool = True) -> Iterator[tuple[str, int]]:
    """Yield the keys of a template that are literals, or names of literals in this template, with their lines.

    A page doesn't fetch the keys of its islands.
    """
    pairs = [*_find_pairs(node)]
    for first in _find_key_expressions(node, has_islands=has_islands):
        values = [value for name, value in pairs if name == first.name] if isinstance(first, nodes.Name) else [first]
        for value in values:
            if isinstance(value, nodes.Const) and isinstance(value.value, str):
                yield value.value, value.lineno


def _find_key_expressions(node: nodes.Node, *, has_islands: bool = True) -> Iterator[nodes.Expr]:
    tags = ("find", "show_island") if has_islands else ("find",)
    for call in node.find_all(nodes.Call):
        name = getattr(call.node, "name", "")
        is_tag = isinstance(call.node, nodes.ExtensionAttribute) and name in tags
        if is_tag or name in ("experience_value", "personalize_state"):
            yield from call.args if name == "personalize_state" else call.args[:1]


def _find_pairs(node: nodes.Template) -> Iterator[Pair]:
    """Yield the names that the template sets in a tag, or as the arguments of its own macros, with their values."""
    pairs: list[tuple[nodes.Node, nodes.Node]] = []
    each: Any
    for each in node.find_all((nodes.Assign, nodes.With, nodes.For)):
        if isinstance(each, nodes.Assign):
            pairs += [(each.target, each.node)]
        elif isinstance(each, nodes.With):
            pairs += zip(each.targets, each.values, strict=True)
        else:
            pairs += [(each.target, item) for item in getattr(each.iter, "items", ())]
    for macro in node.find_all(nodes.Macro):
        pairs += zip(macro.args[::-1], macro.defaults[::-1], strict=False)
        yield from _find_arguments(macro, node, [macro.name])
    yield from ((target.name, cast(Any, value)) for target, value in pairs if isinstance(target, nodes.Name))


def _find_arguments(macro: nodes.Macro, node: nodes.Template, names: Sequence[str]) -> Iterator[Pair]:
    """Yield the arguments of the calls of a macro. The macro of an imported template has a name with a dot."""
    for call in node.find_all(nodes.Call):
        owner: Any = call.node
        called = f"{getattr(owner.node, 'name', '')}.{owner.attr}" if isinstance(owner, nodes.Getattr) else ""
        if (called or getattr(owner, "name", "")) in names:
            yield from zip([argument.name for argument in macro.args], call.args, strict=False)
            yield from ((pair.key, pair.value) for pair in call.kwargs)


def _mark(argument: nodes.Expr) -> nodes.Expr:
    if not (isinstance(argument, nodes.Const) and isinstance(argument.value, str)):
        return argument
    write = nodes.ExtensionAttribute(PersonalizeExtension.identifier, "write")
    return nodes.Call(write, [argument], [], None, None, lineno=argument.lineno)


class _Template(Template):
    """A compiled template that knows its keys and its parents."""

    @property
    def engine(self) -> Environment:
        """The environment, which finds the other templates."""
        return self.environment

    def read_experiences(self) -> Iterator[tuple[str | None, str | None]]:
        """Yield the keys, and the names of the templates that this template uses."""
        keys, names = self.root_render_func.__globals__.get(_PLAN, ((), ()))
        yield from ((key, None) for key in keys)
        yield from ((None, name) for name in names)

    def new_context(self, vars: dict[str, Any] | None = None, shared: bool = False, locals: Any = None) -> Context:
        """Return the context. Only the template that renders the page has a context that isn't shared."""
        return super().new_context(vars if shared else {ROOT: self, **(vars or {})}, shared, locals)

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template. With ``enable_async`` Jinja2 starts an event loop, so fetch the experiences before."""
        if self.environment.is_async:
            request = dict(*args, **kwargs).get("request")
            if get_page(request) and (keys := find_template_keys(self)):
                request.personalization.load(*keys)  # type: ignore[union-attr]
        return super().render(*args, **kwargs)


def _find(context: Context, page: Page | None, key: object) -> Any:
    if page is None or not isinstance(key, str):
        return None
    template = context.get(ROOT)
    if context.environment.is_async:
        return _afind(page, key, template)
    return pages.give_type(page, key, page.find(key, template))


async def _afind(page: Page, key: str, template: Any) -> Experience | None:
    if key not in page._answers and template is not None and (keys := find_template_keys(template)):
        page._learn(*keys)
        await page.aconfirm()
        await page.aload(*keys)
    return pages.give_type(page, key, await page.aread(key))


@pass_context
def experience_value(context: Context, key: object, variable: str, default: object = "") -> Any:
    """Return one variable of a payload as text, or the default."""
    page = pages.find_page(cast(Any, context))
    found = _find(context, page, key)
    if isinstance(found, Awaitable):
        return _await_value(context, page, found, key, variable, default)
    return _show_value(context, page, found, key, variable, default)


async def _await_value(context: Context, page: Any, found: Awaitable[Any], *arguments: Any) -> Any:
    return _show_value(context, page, await found, *arguments)


def _show_value(
    context: Context, page: Page | None, experience: Experience | None, key: object, variable: str, default: object
) -> Any:
    value = None
    if page is not None and experience is not None:
        value = experience.payload.get(variable)
        if value is None:
            tags.report_missing(key, variable)
        else:
            page.tracker.rendered.setdefault(experience.experience_key, experience)
    value = default if value is None else value
    if not context.eval_ctx.autoescape:
        return rendering.render_value(value)
    return value if hasattr(value, "__html__") else str(value)


@pass_context
def click_url(
    context: Context, experience: object, destination: object, *, element: object = "", offering: object = None
) -> str:
    """Return the URL of a link that counts clicks, or the plain destination if the click can't be counted."""
    page = pages.find_page(cast(Any, context))
    if page is not None:
        page.confirm()
    return rendering.build_click_url(
        pages.find_request(cast(Any, context)),
        None if page is None else page.tracker,
        experience if isinstance(experience, Experience) else None,
        _get_text(destination),
        written=destination if isinstance(destination, Literal) else "",
        element=_get_text(element),
        offering=offering if isinstance(offering, Offering) else None,
    )


@pass_context
def personalize_scripts(context: Context) -> str:
    """Return the script tag, which has the CSP nonce of this page."""
    return tags.ScriptsNode().render(cast(Any, context))


@pass_context
def personalize_state(context: Context, *keys: object) -> Any:
    """Return the experiences of the keys as JSON for scripts. Without keys, return those that the page has shown."""
    page = pages.find_page(cast(Any, context))
    found = {str(key): _find(context, page, str(key)) for key in keys}
    if any(isinstance(each, Awaitable) for each in found.values()):
        return _await_state(page, found)
    return render_state(page, found or (page.tracker.list_shown() if page else {}))


async def _await_state(page: Page | None, found: dict[str, Any]) -> str:
    return render_state(page, {key: await each for key, each in found.items()})


@pass_context
def personalize_identity(context: Context) -> str:
    """Return the script tag that tells MoEngage's Web SDK who the visitor is."""
    return tags.IdentityNode().render(cast(Any, context))


def experience_url(value: object) -> str:
    """Return a URL from the dashboard if it is relative or leads to CONTENT_HOSTS. Otherwise return ``#``."""
    return tags.experience_url(_get_text(value))


def _get_text(value: object) -> str:
    return value.unescape() if isinstance(value, Markup) else tags.undo_escape(value)


@register_finder
def find_in_jinja2() -> Iterator[Usage]:
    """Yield the literal keys in the templates of all engines that have the extension."""
    for backend in engines.all():
        environment: Any = getattr(backend, "env", None)
        if any(isinstance(each, PersonalizeExtension) for each in getattr(environment, "extensions", {}).values()):
            parsed = dict(_parse_all(environment))
            for name, (file, node) in parsed.items():
                keys = [*_find_keys(node), *_find_keys_of_imported_macros(node, parsed)]
                yield from (Usage(key, "template", file or name, line) for key, line in keys)


def _parse_all(environment: Environment) -> Iterator[tuple[str, tuple[str | None, nodes.Template]]]:
    names = []
    # A loader of functions can't list its templates.
    with suppress(TypeError):
        names = environment.list_templates()
    for name in names:
        # A picture is not a template.
        with suppress(TemplateNotFound, UnicodeError):
            source, file, _ = cast(Any, environment.loader).get_source(environment, name)
            try:
                yield name, (file, environment.parse(source, name, file))
            except TemplateError as error:
                report_unread(name, source, error)


def _find_keys_of_imported_macros(node: nodes.Template, parsed: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the literals that the template gives to a macro of another template, which uses them as keys."""
    each: Any
    for each in node.find_all((nodes.Import, nodes.FromImport)):
        _, other = parsed.get(getattr(each.template, "value", ""), (None, nodes.Template([])))
        for macro in other.find_all(nodes.Macro):
            if isinstance(each, nodes.Import):
                names = [f"{each.target}.{macro.name}"]
            else:
                imported = [(name, name) if isinstance(name, str) else name for name in each.names]
                names = [alias for name, alias in imported if name == macro.name]
            keys = [getattr(expression, "name", "") for expression in _find_key_expressions(macro)]
            for argument, value in _find_arguments(macro, node, names):
                if argument in keys and isinstance(value, nodes.Const) and isinstance(value.value, str):
                    yield value.value, value.lineno

"""The sandbox that chat templates run in: transformers' own, with bounds on steps, text and time."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 300_000
"""Turns of loops and calls in one rendering; a conversation of a thousand messages takes some ten thousand."""
MOST_CHARACTERS = 1 << 26
"""That one rendering may put together, intermediate texts included."""
MOST_SECONDS = 30.0
"""A last resort for what takes long without steps."""
LARGEST_WIDTH = 1_000
"""Of padding, indents and the like."""
LARGEST_BITS = 4096
"""Of a whole number."""
WIDTH_FILTERS = {"batch", "center", "indent", "slice", "tojson"}
WIDE_FORMAT = re.compile(r"\d{4,}|\*")
"""A width or precision in a format that would make a long text of a short one."""
NESTED_FORMAT = re.compile(r"\{[^{}]*\{")
"""A width that comes from an argument."""
BINARY_OPERATORS = frozenset(["+", "*", "**", "%"])


class TemplateLimitError(TemplateRuntimeError):
    """A template asked for more than one rendering may have."""


class _Budget(threading.local):
    """What is left of the rendering that runs in this thread."""

    steps = characters = 0
    deadline = 0.0

    def begin(self) -> None:
        self.steps, self.characters = MOST_STEPS, MOST_CHARACTERS
        self.deadline = time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimitError(f"takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"takes more than {MOST_SECONDS:.0f} seconds")

    def take(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise TemplateLimitError(f"puts together more than {MOST_CHARACTERS:,} characters")


_budget = _Budget()


def begin() -> None:
    """Start the budget of a rendering in this thread."""
    _budget.begin()


def bounded(environment: ImmutableSandboxedEnvironment) -> ImmutableSandboxedEnvironment:
    """A copy of an environment in which templates are bounded; compile them with `compile_bounded`."""
    own: Any = environment.overlay()
    own.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    own.filters = {name: _bounded_filter(name, one) for name, one in environment.filters.items()}
    own.filters |= {"_counted": _counted, "_joined": _joined}
    own.intercepted_binops = BINARY_OPERATORS  # which are not folded while it compiles, either
    own.call_binop = lambda context, operator, left, right: _operation(own, operator, left, right)
    own.call = lambda context, called, *args, **kwargs: _call(own, context, called, args, kwargs)
    own.finalize = _written
    sandbox: ImmutableSandboxedEnvironment = own
    return sandbox


def compile_bounded(environment: ImmutableSandboxedEnvironment, tree: nodes.Template) -> Any:
    """A template from its syntax tree, whose loops count their turns.

    Raises:
        jinja2.TemplateError, RecursionError: it cannot be compiled.
    """
    code = environment.compile(_Counting().visit(tree))
    return environment.template_class.from_code(environment, code, environment.make_globals(None))


class _Counting(NodeTransformer):
    """Lets loops and concatenations go through the budget."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        texts = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = nodes.Filter(node.iter, "_counted", [nodes.Const(texts)], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)


def _counted(items: Iterable[Any], texts: int) -> Iterable[Any]:
    return _turns(items, texts) if not hasattr(items, "__len__") else _Turns(items, texts)


def _turns(items: Iterable[Any], texts: int) -> Iterator[Any]:
    for item in items:
        _budget.step()
        _budget.take(texts)
        yield item


class _Turns:
    """Items of known number, counted as they are gone through."""

    def __init__(self, items: Any, texts: int) -> None:
        self._items, self._texts = items, texts

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _turns(self._items, self._texts)


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _budget.take(sum(map(len, texts)))
    return "".join(texts)


def _written(value: Any) -> Any:
    """What an output expression writes."""
    if isinstance(value, str):
        _budget.take(len(value))
    return value


def _operation(environment: Any, operator: str, left: Any, right: Any) -> Any:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers and left.bit_length() * max(right, 0) > LARGEST_BITS:
        raise TemplateLimitError(f"computes numbers of more than {LARGEST_BITS} bits")
    if operator == "*" and numbers and left.bit_length() + right.bit_length() > LARGEST_BITS:
        raise TemplateLimitError(f"computes numbers of more than {LARGEST_BITS} bits")
    if operator == "*" and not numbers:
        _budget.take(_repeated(left, right) or _repeated(right, left))
    if operator == "%" and isinstance(left, str):
        _require_narrow(left)
    if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _budget.take(len(left) + len(right))
    result = environment.binop_table[operator](left, right)
    if operator == "%" and isinstance(result, str):
        _budget.take(len(result))
    return result


def _repeated(items: Any, times: Any) -> int:
    return len(items) * max(times, 0) if hasattr(items, "__len__") and isinstance(times, int) else 0


def _require_narrow(template: str) -> None:
    if WIDE_FORMAT.search(template):
        raise TemplateLimitError(f"formats with a width of more than {LARGEST_WIDTH:,}")


def _require_small(arguments: Iterable[Any]) -> None:
    for one in arguments:
        if isinstance(one, int) and abs(one) > LARGEST_WIDTH:
            raise TemplateLimitError(f"asks for a width of more than {LARGEST_WIDTH:,}")


def _call(environment: Any, context: Any, called: Any, args: Any, kwargs: Any) -> Any:
    _budget.step()
    method = getattr(called, "__wrapped__", called)  # jinja2 wraps `format`
    if isinstance(text := getattr(method, "__self__", None), str):
        _before_method(method.__name__, text, args, kwargs)
    result = ImmutableSandboxedEnvironment.call(environment, context, called, *args, **kwargs)
    if isinstance(result, str) and not isinstance(called, Macro):
        _budget.take(len(result))
    return result


def _before_method(name: str, text: str, args: Any, kwargs: Any) -> None:
    """Bound a method of a text by what it is given, before it is run."""
    if name in {"center", "ljust", "rjust", "zfill", "expandtabs"}:
        _require_small((*args, *kwargs.values()))
    if name in {"format", "format_map"}:
        _require_narrow(text)
        if NESTED_FORMAT.search(text):
            raise TemplateLimitError("formats with a width that is computed")
    if name == "replace" and len(args) > 1:
        _take_replaced(text, args[0], args[1])
    if name == "join" and args and isinstance(args[0], list | tuple):
        _take_joined(text, args[0])


def _take_replaced(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        _budget.take(text.count(old) * len(new))


def _take_joined(separator: Any, items: Any) -> None:
    _budget.take(sum(len(one) for one in items if isinstance(one, str)) + len(separator) * len(items))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes what it makes from the budget; jinja2's marks on it stay."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if name in WIDTH_FILTERS:
            _require_small((*args[1:], *kwargs.values()))
        if name == "format":
            _require_narrow(str(args[0]))
        values = [one for one in args if isinstance(one, str | list | tuple)]
        if name == "replace" and len(values) > 2:
            _take_replaced(str(values[0]), values[1], values[2])
        if name == "join" and values and isinstance(values[0], list | tuple):
            _take_joined(values[1] if len(values) > 1 else "", values[0])
        result = function(*args, **kwargs)
        if isinstance(result, str | list):
            _budget.take(len(result))
        return result

    return run


@cache
def sandbox() -> ImmutableSandboxedEnvironment:
    """transformers' environment for chat templates, bounded."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return bounded(_compile_jinja_template("").environment)

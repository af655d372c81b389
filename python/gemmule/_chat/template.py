"""Jinja chat templates out of model files, which are programs by strangers.

Jinja's sandbox keeps a template from Python's internals but lets it loop for ever and fill the memory.
Here every operation that can take time or memory goes through a guard with a budget: the syntax tree is
rewritten so that loops, comparisons, slices and literals call guards too, and only what real chat
templates use is there at all. Limits: source 1 MiB and 40,000 tokens, nesting 100, 2 s, output 16 MiB,
memory about 32 MiB beyond the input.
"""

import datetime
import hashlib
import json
import math
import operator
import re
import string
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, cmp_to_key
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gemmule._errors import FormatError, MissingExtraError

try:
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError, TemplateError, UndefinedError
    from jinja2.ext import Extension
    from jinja2.filters import FILTERS
    from jinja2.parser import Parser
    from jinja2.runtime import LoopContext, Macro, Undefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.tests import TESTS
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer
except ImportError:  # pragma: no cover - a dependency of the package
    raise MissingExtraError("chat templates need one more package: pip install jinja2") from None

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["ChatTemplate", "known_version"]

_MAX_SOURCE = 1 << 20
_MAX_TOKENS = 40_000
_MAX_NESTING = 100
_MAX_SECONDS = 2.0
_MAX_SECONDS_PER_MESSAGE = 0.004  # published templates take quadratic time
_MAX_OUTPUT = 16 << 20
_ROOM = 32 << 20  # bytes a render may make in all, beside 24 times its input
_MAX_REFERENCES = 4_000_000
_MAX_BITS = 4096
_BLOCKS = ("for", "if", "macro", "call", "filter", "with")
_MAX_RANGE = 100_000
_OWN_MARK = "gemmule's own template for Gemma 4"


def known_version(source: str) -> str | None:
    """Which of Gemma 4's published templates this is, told by its features: 'launch' (results only on the
    message that called), 'mid' (reads tool messages), 'current'; None for another model's template.
    """
    if "<|turn>" not in source or "<|tool_call>" not in source:
        return None
    if "tool_call_id" not in source:
        return "launch"
    return "current" if "captured_content" in source or _OWN_MARK in source else "mid"


class ChatTemplate:
    """A chat template. Compiled at first use; may be used by several threads at once.

    Throws FormatError naming the template for bad syntax, what it may not do, and each limit.
    """

    def __init__(self, source: str, *, name: str = "<file>") -> None:
        self.source = source
        self.name = name
        self.known_version = known_version(source)
        if len(source) > _MAX_SOURCE or len(source.encode("utf-8", "replace")) > _MAX_SOURCE:
            self._fail("is larger than 1 MiB")
        self._lock = threading.Lock()
        self._ready: tuple[_Guarded, Template] | None = None

    @cached_property
    def sha256(self) -> str:
        """The hash of the source, in hex."""
        return hashlib.sha256(self.source.encode("utf-8", "replace")).hexdigest()

    @property
    def type_lists(self) -> bool:
        """Whether a schema's type may be a list."""
        return "format_type_argument" in self.source or _OWN_MARK in self.source

    @property
    def is_outdated(self) -> bool:
        """Whether a newer version of this template was published."""
        return self.known_version in ("launch", "mid")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about it."""
        if not self.is_outdated:
            return ()
        return (
            f"{self.name}: the chat template is an older one of Gemma 4 ({self.known_version}); its known "
            "faults are worked around, but a newer file is better for tools",
        )

    def render(self, variables: Mapping[str, Any]) -> str:
        """The template's output."""
        environment, template = self._compiled()
        budget = _Budget(variables)
        before = environment.begin(budget)
        out: list[str] = []
        try:
            for text in template.root_render_func(template.new_context(dict(variables))):
                budget.output(text)
                out.append(text)
            return "".join(out)
        except Exception as error:
            self._fail(_reason(error), error)
        finally:
            environment.begin(before)

    def _compiled(self) -> "tuple[_Guarded, Template]":
        with self._lock:
            if self._ready is None:
                environment = _Guarded()
                before = environment.begin(_Budget({}))
                try:
                    environment.check_size(self.source)
                    self._ready = environment, environment.from_string(self.source)
                except Exception as error:
                    self._fail(_reason(error), error)
                finally:
                    environment.begin(before)
            return self._ready

    def _fail(self, reason: str, error: Exception | None = None) -> NoReturn:
        raise FormatError(f"{self.name}: the chat template {reason}") from (
            None if error is None or isinstance(error, TemplateError | _Limit) else error
        )


class _Limit(Exception):
    """A limit was reached; the text goes on from 'the chat template ...'."""


class _Refused(TemplateError):
    """The template called raise_exception."""


def _reason(error: Exception) -> str:
    if isinstance(error, _Limit):
        return str(error)
    text = " ".join(str(error).split())[:200]
    line = getattr(error, "lineno", None)
    if isinstance(error, _Refused):
        return f"refuses this conversation: {text}"
    if isinstance(error, SecurityError):
        return f"does what templates may not: {text}"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if line is not None:
        return f"has an error in line {line}: {text}"
    return f"fails: {text or type(error).__name__}"


class _Budget:
    """What one render may still use."""

    __slots__ = ("_began", "_deadline", "_output", "_references", "_room", "_seconds", "depth")

    def __init__(self, variables: Mapping[str, Any]) -> None:
        messages = variables.get("messages")
        n_messages = len(messages) if isinstance(messages, list) else 0
        self._seconds = _MAX_SECONDS + _MAX_SECONDS_PER_MESSAGE * max(0, n_messages - 100)
        self._deadline = time.monotonic() + self._seconds
        self._began = time.thread_time()
        self._room = _ROOM + 24 * _text_size(variables)
        self._output = _MAX_OUTPUT
        self._references = _MAX_REFERENCES
        self.depth = 0

    def tick(self) -> None:
        """One step."""
        if time.monotonic() > self._deadline:
            # On a busy machine the wall clock says little; the thread's own time decides.
            left = self._seconds - (time.thread_time() - self._began)
            if left <= 0:
                raise _Limit(f"takes longer than {self._seconds:.3g} s")
            self._deadline += max(left, 0.01)

    def spend(self, n_bytes: int) -> None:
        """Memory that is about to be taken."""
        self._room -= n_bytes
        if self._room < 0:
            raise _Limit("takes too much memory")
        self.tick()

    def refer(self, n: int) -> None:
        """Entries that a loop may add to what a macro collects."""
        self._references -= n
        if self._references < 0:
            raise _Limit("writes too many parts")
        self.tick()

    def output(self, text: str) -> None:
        self._output -= len(text)
        if self._output < 0:
            raise _Limit("writes more than 16 MiB")


def _text_size(value: Any) -> int:
    """Rough number of bytes of an input value."""
    size, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            size += _bytes(item)
        elif isinstance(item, Mapping):
            size += 64
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, list | tuple):
            size += 64
            stack += item
    return size


def _bytes(text: str) -> int:
    """At least the bytes the characters take."""
    return len(text) if text.isascii() else 4 * len(text)


class _Generation(Extension):
    """{% generation %}: marks for training, of no meaning here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Rewriter(NodeTransformer):
    """Puts guards into a syntax tree. Their names hold a space, so that no template can call them itself."""

    _FORBIDDEN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, self._FORBIDDEN):
            name = type(node).__name__.lower()
            raise SecurityError(f"{name} in line {node.lineno}")
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        parts = sum(len(output.nodes) for output in node.find_all(nodes.Output))
        self.generic_visit(node)
        node.iter = _guard(cast(nodes.Expr, node.iter), "each of", nodes.Const(parts))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard(nodes.List(node.nodes, lineno=node.lineno), "joined from")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        left = node.expr
        out: nodes.Expr | None = None
        for operand in node.ops:
            test = _guard(left, "compared by", nodes.Const(operand.op), operand.expr)
            out = test if out is None else nodes.And(out, test, lineno=node.lineno)
            left = operand.expr
        assert out is not None
        return out

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _guard(node.node, "slice of", *(bound or nodes.Const(None) for bound in bounds))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load":
            return node
        # A list is as good and has no hash, whose time could grow without bounds.
        return self.visit_List(nodes.List(node.items, lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:
        if all(isinstance(item, nodes.Const) for item in node.items):
            return node
        self.generic_visit(node)
        return _guard(node, "made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _guard(node, "made")


def _guard(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    guard = nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)
    for arg in args:
        arg.lineno = arg.lineno or node.lineno
    return guard


class _Each:
    """An iterable that pays for every step. Knows its length where that is known, for loop.length."""

    __slots__ = ("_budget", "_items", "_parts")

    def __init__(self, items: Iterable[Any], budget: _Budget, parts: int) -> None:
        self._items = items
        self._budget = budget
        self._parts = parts

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[Any]:
        budget, parts = self._budget, self._parts
        for item in self._items:
            budget.refer(parts)
            yield item


_BOX: Any = list | tuple | dict
_SCALAR = str | int | float | bool | None
_VIEWS: Any = type({}.items()) | type({}.keys()) | type({}.values()) | range
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
_STR_METHODS = frozenset(
    [
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "rsplit",
        "splitlines",
        "startswith",
        "endswith",
        "replace",
        "upper",
        "lower",
        "title",
        "capitalize",
        "casefold",
        "find",
        "rfind",
        "index",
        "rindex",
        "count",
        "join",
        "isdigit",
        "isalpha",
        "isalnum",
        "isspace",
        "isupper",
        "islower",
        "isnumeric",
        "isdecimal",
        "removeprefix",
        "removesuffix",
        "partition",
        "rpartition",
        "format",
    ]
)
_DICT_METHODS = frozenset(("get", "items", "keys", "values"))
_LOOP_NAMES = frozenset(
    [
        "index",
        "index0",
        "first",
        "last",
        "length",
        "revindex",
        "revindex0",
        "previtem",
        "nextitem",
        "cycle",
        "depth",
        "depth0",
    ]
)
_PLAIN_TESTS = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "true",
    "false",
    "integer",
    "float",
    "number",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "odd",
    "even",
    "divisibleby",
    "lower",
    "upper",
    "sameas",
]


class _Guarded(ImmutableSandboxedEnvironment):
    """Jinja with guards. The budget of the running render is kept per thread."""

    intercepted_binops = frozenset(_ARITHMETIC)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants would be folded at compile time, beside the guards
            finalize=_printed,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            cache_size=0,
        )
        self._local = threading.local()
        self.concat = self._concat  # type: ignore[method-assign]
        self.globals = {
            "range": self._range,
            "namespace": self._namespace,
            "dict": self._dict,
            "raise_exception": _raise,
            "strftime_now": _now,
        }
        self._functions = frozenset(self.globals.values())
        self.filters = self._filters()
        self.tests = {name: TESTS[name] for name in _PLAIN_TESTS}
        for name, names in {
            "eq": ("eq", "equalto", "=="),
            "ne": ("ne", "!="),
            "lt": ("lt", "lessthan", "<"),
            "lteq": ("le", "<="),
            "gt": ("gt", "greaterthan", ">"),
            "gteq": ("ge", ">="),
            "in": ("in",),
        }.items():
            for alias in names:
                self.tests[alias] = lambda a, b, op=name: self._compare(a, op, b)

    def begin(self, budget: _Budget | None) -> _Budget | None:
        """Sets the thread's budget and returns the one before."""
        before = getattr(self._local, "budget", None)
        self._local.budget = budget
        return before

    @property
    def budget(self) -> _Budget:
        found: _Budget = self._local.budget
        return found

    # -- compiling -----------------------------------------------------------------------------------------

    def check_size(self, source: str) -> None:
        """Refuses sources whose compilation would take too long."""
        depth, before = 0, ""
        for i, (_, kind, text) in enumerate(self.lexer.tokeniter(source, None)):
            if i % 64 == 0:
                self.budget.tick()
            if i >= _MAX_TOKENS:
                raise _Limit(f"has more than {_MAX_TOKENS} tokens")
            if kind == "operator":
                depth += (text in "([{") - (text in ")]}")
            elif kind == "name" and before == "block_begin":
                depth += (text in _BLOCKS) - (text.removeprefix("end") in _BLOCKS and text.startswith("end"))
            if depth > _MAX_NESTING:
                raise _Limit(f"is nested deeper than {_MAX_NESTING} levels")
            before = before if kind == "whitespace" else kind

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        if _depth(tree) > 3 * _MAX_NESTING:
            raise _Limit(f"is nested deeper than {_MAX_NESTING} levels")
        _Rewriter().visit(tree)
        return tree

    # -- access --------------------------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise SecurityError(f"it reads the attribute {attribute[:40]!r}")
        if isinstance(obj, dict):
            if attribute in _DICT_METHODS:
                return getattr(obj, attribute)
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, str):
            if attribute in _STR_METHODS:
                return getattr(obj, attribute)
            if hasattr(obj, attribute):
                raise SecurityError(f"it calls str.{attribute}")
        elif isinstance(obj, Undefined):
            self._undefined(obj)
        elif isinstance(obj, Namespace) or (isinstance(obj, LoopContext) and attribute in _LOOP_NAMES):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            self._undefined(obj)
        if isinstance(obj, list | tuple | str | dict):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        elif isinstance(obj, Namespace | LoopContext) and isinstance(argument, str):
            return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    @staticmethod
    def _undefined(value: Undefined) -> NoReturn:
        name = value._undefined_name
        raise UndefinedError(
            f"{name[:60]!r} is undefined" if isinstance(name, str) else "a value is undefined"
        )

    # -- calls ---------------------------------------------------------------------------------------------

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        budget.tick()
        kwargs = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
        if isinstance(__obj, Macro):
            budget.spend(64 * (1 + len(args)))
            budget.depth += 1
            if budget.depth > _MAX_NESTING:
                raise _Limit(f"calls itself deeper than {_MAX_NESTING} levels")
            try:
                return __context.call(__obj, *args, **kwargs)
            finally:
                budget.depth -= 1
        if isinstance(__obj, BuiltinMethodType):
            owner, name = __obj.__self__, __obj.__name__
            if isinstance(owner, str) and name in _STR_METHODS:
                return __self._string_method(owner, name, args, kwargs)
            if isinstance(owner, dict) and name in _DICT_METHODS:
                return __obj(*args, **kwargs)
        if isinstance(__obj, LoopContext):
            return __context.call(__obj, *(__self._each(arg) for arg in args[:1]))
        if isinstance(getattr(__obj, "__self__", None), LoopContext) and args:
            return __obj(*args)  # loop.cycle
        if isinstance(__obj, Undefined):
            __self._undefined(__obj)
        try:
            known = __obj in __self._functions
        except TypeError:
            known = False
        if known:
            return __obj(*args, **kwargs)
        raise SecurityError(f"it calls an object of type {type(__obj).__name__}")

    def _string_method(self, text: str, name: str, args: Any, kwargs: Any) -> Any:
        if name == "format":
            return self._format(text, args, kwargs)
        if name == "join":
            return self._joined(args[0] if args else (), text)
        size = _bytes(text)
        if name == "replace":
            old, new = (self._text_of(arg) for arg in args[:2])
            found = text.count(old) if len(args) < 3 else min(text.count(old), max(int(args[2]), 0))
            self.budget.spend(size + found * (_bytes(new) + 1))
        elif name in ("split", "rsplit", "splitlines"):
            gap = args[0] if args and name != "splitlines" else kwargs.get("sep")
            pieces = text.count(gap) + 1 if isinstance(gap, str) and gap else len(text) // 2 + 1
            self.budget.spend(size + 64 * pieces)
        elif not name.startswith("is"):
            self.budget.spend(size if name.endswith(("with", "find", "index", "count")) else 3 * size)
        if any(not isinstance(arg, _SCALAR) for arg in args):
            args = tuple(
                tuple(arg) if isinstance(arg, list) else arg for arg in args
            )  # startswith(("a", "b"))
        return getattr(text, name)(*args, **kwargs)

    def _format(self, text: str, args: Any, kwargs: Any) -> str:
        size = _bytes(text)
        for _, field, spec, conversion in string.Formatter().parse(text):
            if field is None:
                continue
            if not re.fullmatch(r"\w*", field) or not re.fullmatch(r"(\.\d{1,2})?[sdfge]?", spec or ""):
                raise SecurityError(f"the format field {field[:40]!r}")
            if conversion:
                raise SecurityError("a conversion in a format")
            value = args[int(field)] if field.isdigit() else kwargs.get(field, "") if field else ""
            size += _bytes(value) if isinstance(value, str) else 512
        plain = [arg if isinstance(arg, _SCALAR) else self._text_of(arg) for arg in args]
        named = {k: arg if isinstance(arg, _SCALAR) else self._text_of(arg) for k, arg in kwargs.items()}
        size += sum(_bytes(arg) for arg in plain if isinstance(arg, str))
        self.budget.spend(size)
        return text.format(*plain, **named)

    def _range(self, *args: int) -> range:
        out = range(*args)
        if len(out) > _MAX_RANGE:
            raise _Limit(f"loops over more than {_MAX_RANGE} numbers")
        return out

    def _namespace(self, *args: Any, **kwargs: Any) -> Namespace:
        self.budget.spend(256 + 64 * (len(kwargs) + sum(len(arg) for arg in args)))
        return Namespace(*args, **kwargs)

    def _dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.budget.spend(256 + 128 * (len(kwargs) + sum(len(arg) for arg in args)))
        return dict(*args, **kwargs)

    # -- operators -----------------------------------------------------------------------------------------

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str) and isinstance(right, str) and operator == "+":
            self.budget.spend(_bytes(left) + _bytes(right))
            return left + right
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            self._undefined(left if isinstance(left, Undefined) else right)
        if isinstance(left, list | tuple) and isinstance(right, list | tuple) and operator == "+":
            self.budget.spend(64 + 16 * (len(left) + len(right)))
            return [*left, *right]
        if operator == "*" and isinstance(left, int) != isinstance(right, int):
            some, n = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(some, str | list):
                size = _bytes(some) if isinstance(some, str) else 16 * len(some)
                self.budget.spend(64 + size * max(n, 0))
                return some * n
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise TypeError(f"{type(left).__name__} {operator} {type(right).__name__} is not possible")
        self.budget.tick()
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            bits = (
                left.bit_length() * max(right, 1)
                if operator == "**"
                else left.bit_length() + right.bit_length()
            )
            if bits > _MAX_BITS:
                raise _Limit("makes a number that is too large")
        return _ARITHMETIC[operator](left, right)

    def _percent(self, text: str, values: Any) -> str:
        if re.search(r"%(?![sd%])", text):
            raise SecurityError("a format other than %s and %d")
        values = tuple(values) if isinstance(values, list | tuple) else (values,)
        return "".join(
            "%" if part == "%%" else next(rest) if part in ("%s", "%d") else part
            for rest in [iter([self._text_of(value) for value in values])]
            for part in re.split(r"(%[sd%])", text)
        )

    def _compare(self, left: Any, op: str, right: Any) -> bool:
        if op == "in":
            return self._contains(right, left)
        if op == "notin":
            return not self._contains(right, left)
        self.budget.tick()
        if isinstance(left, _BOX) and isinstance(right, _BOX):
            if op not in ("eq", "ne"):
                raise TypeError("lists and dicts have no order")
            return self._equal(left, right) == (op == "eq")
        return bool(_OPERATIONS[op](left, right))

    def _contains(self, box: Any, item: Any) -> bool:
        self.budget.tick()
        if isinstance(box, str):
            if not isinstance(item, str):
                raise TypeError(f"{type(item).__name__} in text is not possible")
            return item in box
        if isinstance(box, dict):
            return isinstance(item, _SCALAR) and item in box
        if isinstance(box, list) and len(box) <= 16 and all(isinstance(part, _SCALAR) for part in box):
            return item in box
        if isinstance(box, Undefined):
            return False
        return any(self._equal(part, item) for part in self._each(box))

    def _equal(self, left: Any, right: Any) -> bool:
        """Whether two values are the same, paying for each comparison inside."""
        stack = [(left, right)]
        while stack:
            self.budget.tick()
            a, b = stack.pop()
            if isinstance(a, dict) and isinstance(b, dict):
                if a.keys() != b.keys():
                    return False
                stack += [(a[key], b[key]) for key in a]
            elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
                if len(a) != len(b):
                    return False
                stack += zip(a, b, strict=True)
            elif isinstance(a, _BOX) or isinstance(b, _BOX) or a != b:
                return False
        return True

    def _slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        if isinstance(value, Undefined):
            self._undefined(value)
        if not isinstance(value, str | list | tuple | range):
            raise TypeError(f"{type(value).__name__} has no slices")
        out = value[slice(*(None if b is None else operator.index(b) for b in (start, stop, step)))]
        self.budget.spend(_bytes(out) if isinstance(out, str) else 64 + 16 * len(out))
        return out

    def _made(self, box: Any) -> Any:
        self.budget.spend(96 + 32 * len(box))
        return box

    def _each(self, items: Any, parts: int = 0) -> _Each:
        if isinstance(items, Undefined):
            items = ()
        elif isinstance(items, str):
            self.budget.tick()
        elif not isinstance(items, _BOX | _VIEWS | _Each | Iterator):
            raise TypeError(f"a value of type {type(items).__name__} is not a list")
        self.budget.spend(128)
        return _Each(items, self.budget, parts)

    # -- text ----------------------------------------------------------------------------------------------

    def _text_of(self, value: Any) -> str:
        """What a value looks like when printed."""
        if isinstance(value, str):
            return value
        if value is None or isinstance(value, bool | int | float | Undefined):
            return str(value)
        if isinstance(value, _BOX):
            self._weigh(value)
            return str(value)
        raise TypeError(f"a value of type {type(value).__name__} cannot be printed")

    def _weigh(self, value: Any, indent: int = 0) -> None:
        """Pays for the text of a value before it is made. Shared parts count each time."""
        stack = [(value, 1)]
        while stack:
            item, depth = stack.pop()
            if depth > _MAX_NESTING:
                raise _Limit(f"prints a value nested deeper than {_MAX_NESTING} levels")
            if isinstance(item, str):
                self.budget.spend(8 + 2 * _bytes(item) + indent * depth)
            elif isinstance(item, dict):
                self.budget.spend(16 + indent * depth)
                stack += [(part, depth + 1) for part in item]
                stack += [(part, depth + 1) for part in item.values()]
            elif isinstance(item, list | tuple):
                self.budget.spend(16 + 16 * len(item) + indent * depth)
                stack += [(part, depth + 1) for part in item]
            elif isinstance(item, _SCALAR):
                self.budget.spend(32 + indent * depth)
            else:
                raise TypeError(f"a value of type {type(item).__name__} cannot be printed")

    def _concat(self, parts: Iterable[str]) -> str:
        """Joins the parts of a macro or block."""
        texts = list(parts)
        total = sum(map(len, texts))
        if total > _MAX_OUTPUT:
            raise _Limit("writes more than 16 MiB")
        out = "".join(texts)
        self.budget.spend(_bytes(out))
        return out

    def _joined(self, items: Any, gap: Any = "", attribute: str | None = None) -> str:
        if attribute is not None:
            items = [self.getitem(item, attribute) for item in self._each(items)]
        texts = [self._text_of(item) for item in self._each(items)]
        between: str = self._text_of(gap)
        self.budget.spend(sum(map(_bytes, texts)) + _bytes(between) * len(texts))
        return between.join(texts)

    # -- filters -------------------------------------------------------------------------------------------

    def _filters(self) -> dict[str, Callable[..., Any]]:
        same_size = {
            name: self._on_text(name, getattr(str, method))
            for name, method in {"upper": "upper", "lower": "lower", "capitalize": "capitalize"}.items()
        }
        listed = {
            name: self._on_items(FILTERS[name])
            for name in ("map", "select", "reject", "selectattr", "rejectattr", "first")
        }
        return {
            **same_size,
            **listed,
            "each of": self._each,
            "joined from": lambda items: self._joined(items),
            "compared by": self._compare,
            "slice of": self._slice,
            "made": self._made,
            "title": self._on_text("title", str.title),
            "trim": self._on_text("trim", str.strip),
            "string": self._text_of,
            "safe": lambda value: value,
            "replace": self._replace,
            "indent": self._indent,
            "join": self._joined,
            "tojson": self._tojson,
            "length": self._length,
            "count": self._length,
            "default": FILTERS["default"],
            "d": FILTERS["default"],
            "items": lambda value: () if isinstance(value, Undefined) else self.getattr(value, "items")(),
            "list": self._list,
            "last": lambda value: self._ended(value, -1),
            "reverse": lambda value: self._slice(value, None, None, -1),
            "dictsort": self._dictsort,
            "sort": self._sort,
            "unique": self._unique,
            "min": lambda value: self._sort(value)[0],
            "max": lambda value: self._sort(value)[-1],
            "sum": self._sum,
            "int": self._int,
            "float": self._float,
            "abs": lambda value: abs(_number(value)),
            "round": lambda value, precision=0: round(_number(value), max(-9, min(9, int(precision)))),
            "attr": self.getattr,
        }

    def _on_text(self, name: str, function: Callable[..., str]) -> Callable[..., str]:
        def apply(value: Any, *args: str) -> str:
            text = self._text_of(value)
            self.budget.spend(3 * _bytes(text))
            return function(text, *args)

        return apply

    def _on_items(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """One of Jinja's own filters over items, which pay now. It keeps its claim to the context."""

        def apply(first: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            return function(first, self._each(() if value is None else value), *args, **kwargs)

        for mark in ("jinja_pass_arg",):
            if hasattr(function, mark):
                setattr(apply, mark, getattr(function, mark))
        return apply

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> Any:
        args = (self._text_of(old), self._text_of(new), *(() if count in (-1, None) else (count,)))
        return self._string_method(self._text_of(value), "replace", args, {})

    def _indent(self, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
        text = self._text_of(value)
        gap = width if isinstance(width, str) else " " * max(0, min(int(width), 1000))
        self.budget.spend(_bytes(text) + (text.count("\n") + 1) * (64 + _bytes(gap)))
        lines = text.splitlines(keepends=True)
        return "".join(
            (gap if (i or first) and (blank or line.strip()) else "") + line for i, line in enumerate(lines)
        )

    def _tojson(
        self,
        value: Any,
        indent: int | None = None,
        ensure_ascii: bool = False,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        indent = None if indent is None else max(0, min(int(indent), 16))
        self._weigh(value, indent or 0)
        return json.dumps(
            value,
            indent=indent,
            ensure_ascii=ensure_ascii,
            separators=None if separators is None else tuple(separators),
            sort_keys=sort_keys,
        )

    def _length(self, value: Any) -> int:
        if isinstance(value, Undefined):
            return 0
        if isinstance(value, str | _BOX | _VIEWS):
            return len(value)
        return sum(1 for _ in self._each(value))

    def _list(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            self.budget.spend(80 * len(value))
            return list(value)
        out = []
        for item in self._each(value):
            self.budget.spend(16)
            out.append(item)
        return out

    def _ended(self, value: Any, at: int) -> Any:
        items = value if isinstance(value, str | list | tuple) else self._list(value)
        return items[at] if items else self.undefined("the list is empty")

    def _dictsort(
        self, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
    ) -> Any:
        if isinstance(value, Undefined):
            self._undefined(value)
        if not isinstance(value, dict) or by not in ("key", "value"):
            raise TypeError("dictsort needs a dict")
        at = int(by == "value")
        return self._sort(value.items(), reverse, case_sensitive, at)

    def _sort(
        self,
        value: Any,
        reverse: bool = False,
        case_sensitive: bool = False,
        attribute: Any = None,
    ) -> list[Any]:
        items = self._list(value)

        def key(item: Any) -> Any:
            if attribute is not None:
                for part in str(attribute).split("."):
                    item = self.getitem(item, int(part) if part.isdigit() else part)
            if isinstance(item, str) and not case_sensitive:
                self.budget.spend(2 * _bytes(item))
                return item.lower()
            if not isinstance(item, _SCALAR):
                raise TypeError("only texts and numbers have an order")
            return item

        def order(a: Any, b: Any) -> int:
            self.budget.tick()
            return int(a[0] > b[0]) - int(a[0] < b[0])

        pairs = sorted([(key(item), item) for item in items], key=cmp_to_key(order), reverse=reverse)
        return [item for _, item in pairs]

    def _unique(self, value: Any, case_sensitive: bool = False) -> Iterator[Any]:
        seen = set()
        for item in self._list(value):
            if not isinstance(item, _SCALAR):
                raise TypeError("unique takes texts and numbers")
            key = item.lower() if isinstance(item, str) and not case_sensitive else item
            self.budget.spend(64 + (_bytes(item) if isinstance(item, str) else 0))
            if key not in seen:
                seen.add(key)
                yield item

    def _sum(self, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        for item in self._each(value):
            start = start + _number(item if attribute is None else self.getitem(item, attribute))
        return start

    def _int(self, value: Any, default: int = 0) -> int:
        try:
            if isinstance(value, str):
                return int(value) if len(value) < 1000 else default
            return int(_number(value))
        except (TypeError, ValueError, OverflowError):
            return default

    def _float(self, value: Any, default: float = 0.0) -> float:
        try:
            return float(value if isinstance(value, str) and len(value) < 1000 else _number(value))
        except (TypeError, ValueError, OverflowError):
            return default


@pass_context
def _printed(context: Any, value: Any) -> str:
    """What `{{ value }}` writes."""
    environment: _Guarded = context.environment
    environment.budget.tick()
    return environment._text_of(value)


def _depth(tree: nodes.Node) -> int:
    level, depth = [tree], 0
    while level:
        level = [child for node in level for child in node.iter_child_nodes()]
        depth += 1
    return depth


def _number(value: Any) -> Any:
    if not isinstance(value, int | float) or (isinstance(value, int) and value.bit_length() > _MAX_BITS):
        raise TypeError(f"{type(value).__name__} is not a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError("the number is not finite")
    return value


def _raise(message: Any = "") -> NoReturn:
    raise _Refused(str(message)[:1000] if isinstance(message, str | int) else "")


def _now(format: str = "%Y-%m-%d") -> str:
    """The local time; widths, which some systems pad to any size, are not taken."""
    if not isinstance(format, str) or len(format) > 200 or re.search(r"%(?!-?[A-Za-z%])", format):
        raise SecurityError("a time format with a width")
    return datetime.datetime.now().strftime(format)

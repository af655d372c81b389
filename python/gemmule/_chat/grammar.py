"""What an answer must look like, as a grammar that llguidance compiles, and the vocabulary it compiles for.

schema -> JSON text, regex -> the whole answer, choices -> one of some strings, grammar -> Lark or GBNF.
Everything is checked before the native parser sees it (its recursion over rules could overflow the stack) and
compiled on a thread with a stack of known size under limits of work. JSON gets at most one line break and
some indentation, or one space, between two tokens, so that a model cannot print blank space for ever.
"""

import json
import os
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemmule._chat.schema import SchemaSpec
from gemmule._chat.schema_limits import MAX_ENUM, MAX_REPEAT, check_regex, check_tree
from gemmule._errors import GrammarError, MissingExtraError

if TYPE_CHECKING:
    import llguidance

    from gemmule._tokenizer import Tokenizer

__all__ = [
    "Grammar",
    "Vocabulary",
    "background",
    "grammar_of",
    "guidance_memory",
    "guidance_tokenizer",
    "lark_source",
    "prepare_guidance",
]

_MAX_GRAMMAR = 1 << 18  # characters of Lark or GBNF
_MAX_PARTS = 2000  # rules and groups; bounds how deep the native compiler can recurse: 4 KiB each
_MAX_GROUPS = 64
_STACK = 16 << 20
_KEPT = 32  # compiled grammars per vocabulary
_PER_TOKEN = 500  # bytes of the vocabulary, measured with 262,144 tokens
_TYPE_USER, _TYPE_UNUSED = 4, 5
# Between two tokens of JSON: nothing, one space, or one line break with indentation.
_WHITESPACE = r"(\n {0,24}| )?"
_MAX_INTEGER = 10**15  # the largest bound that can be enforced
_JSON_OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,
}


@dataclass(frozen=True)
class Grammar:
    """One checked grammar: `source` for llguidance, and `parse` to read an answer that is complete."""

    source: str
    kind: str
    parse: Callable[[str], Any]
    json_schema: dict[str, Any] | None = None


def grammar_of(
    *,
    schema: Any = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
) -> Grammar | None:
    """The grammar asked for, None when nothing was. GrammarError says what cannot be kept, and where."""
    given = [
        name
        for name, value in (("schema", schema), ("regex", regex), ("choices", choices), ("grammar", grammar))
        if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"give only one of schema, regex, choices and grammar, not {' and '.join(given)}")
    if schema is not None:
        spec = SchemaSpec.of(schema)
        made = Grammar(json_source(spec.json_schema), "schema", spec.parse, spec.json_schema)
    elif regex is not None:
        made = Grammar(_regex_source(regex), "regex", str)
    elif choices is not None:
        made = Grammar(_choices_source(choices), "choices", str)
    elif grammar is not None:
        made = Grammar(_text_source(grammar), "grammar", str)
    else:
        return None
    _validate(made.source, made.kind)
    return made


def lark_source(lark: str) -> str:
    """Lark text of our own making as a source."""
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def json_source(schema: dict[str, Any]) -> str:
    """A schema in normal form as a source. Its $defs go along."""
    schema = _with_finite_integers(schema)
    return json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": _JSON_OPTIONS}}]})


def _with_finite_integers(schema: Any) -> Any:
    """Bounds on integers that have none: digit after digit, a model could write one for ever."""
    if isinstance(schema, list):
        return [_with_finite_integers(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "integer":
        low = {} if schema.keys() & {"minimum", "exclusiveMinimum"} else {"minimum": -_MAX_INTEGER}
        high = {} if schema.keys() & {"maximum", "exclusiveMaximum"} else {"maximum": _MAX_INTEGER}
        return {**schema, **low, **high}
    return {
        key: value if key in ("enum", "const") else _with_finite_integers(value)
        for key, value in schema.items()
    }


def _regex_source(regex: str) -> str:
    if not isinstance(regex, str):
        raise TypeError(f"regex must be str, not {type(regex).__name__}")
    if not regex:
        raise GrammarError("the regex is empty; it would allow only an empty answer")
    check_regex(regex)
    if regex.startswith("^"):  # the whole answer is matched in any case
        regex = regex[1:]
    if regex.endswith("$") and not regex.endswith("\\$"):
        regex = regex[:-1]
    return lark_source(f"start: R\nR: {regex_literal(f'(?:{regex})')}\n")


def regex_literal(regex: str) -> str:
    """A regular expression as Lark text; classes such as \\d mean ASCII, as in JSON Schema."""
    import llguidance._lib as lib

    return f"/{lib.regex_to_lark(regex, 'dw')}/"


def _choices_source(choices: Sequence[str]) -> str:
    if isinstance(choices, str) or not all(isinstance(choice, str) for choice in choices):
        raise TypeError("choices must be a sequence of strings")
    unique = list(dict.fromkeys(choices))
    if not unique or "" in unique:
        raise GrammarError("choices must hold at least one string, and none may be empty")
    if len(unique) > MAX_ENUM:
        raise GrammarError(f"there are {len(unique)} choices; {MAX_ENUM} are allowed")
    check_tree(unique, "choices")
    return lark_source("start: C\nC: " + " | ".join(map(text_literal, unique)) + "\n")


def text_literal(text: str) -> str:
    """A string as Lark text. Lone surrogates cannot be text of any answer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{text[:40]!r} holds a lone surrogate, which no token can stand for") from None
    return json.dumps(text, ensure_ascii=False)


def _text_source(grammar: str) -> str:
    if not isinstance(grammar, str):
        raise TypeError(f"grammar must be str (Lark or GBNF), not {type(grammar).__name__}")
    if len(grammar) > _MAX_GRAMMAR:
        raise GrammarError(f"the grammar is longer than {_MAX_GRAMMAR} characters; make it smaller")
    if re.search(r"^[ \t]*root[ \t]*::=", grammar, re.MULTILINE):
        grammar = gbnf_to_lark(grammar)
    elif not re.search(r"^[ \t]*[?!]?start\b[^\n]*:", grammar, re.MULTILINE):
        raise GrammarError("the grammar has neither a rule 'start:' (Lark) nor a rule 'root ::=' (GBNF)")
    _check_lark(grammar)
    return lark_source(grammar)


# -- checks of a written grammar ---------------------------------------------------------------------------

_LARK = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*"i?)
      | (?P<regex>/(?:[^/\\\n]|\\.)+/[a-z]*)
      | (?P<json>%json\b)
      | (?P<rule>^[ \t]*[?!]?[A-Za-z_][A-Za-z0-9_]*[^\s:|"/]*[ \t]*:)
      | (?P<count>\{[ \t]*[0-9]{1,9}[ \t]*(?:,[ \t]*[0-9]{0,9}[ \t]*)?\}|~[ \t]*[0-9]{1,9}(?:\.\.[0-9]{1,9})?)
      | (?P<open>[(\[])
      | (?P<close>[)\]])""",
    re.VERBOSE | re.MULTILINE,
)


def _check_lark(grammar: str) -> None:
    """Counts rules, groups and repeats in one pass; refuses what could exhaust the native compiler."""
    parts = depth = 0
    at = 0
    while (found := _LARK.search(grammar, at)) is not None:
        at = found.end()
        kind = found.lastgroup
        if kind == "rule":
            parts += 1
            depth = 0
        elif kind == "open":
            parts += 1
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif kind == "regex":
            check_regex(found[0].strip("/"), "the grammar: a regex")
        elif kind == "json":
            at = _check_inline_schema(grammar, at)
        elif kind == "count":
            most = max(int(number) for number in re.findall(r"[0-9]+", found[0]))
            if most > MAX_REPEAT:
                raise GrammarError(f"the grammar repeats {most} times; {MAX_REPEAT} is the most")
        if parts > _MAX_PARTS:
            raise GrammarError(f"the grammar has more than {_MAX_PARTS} rules and groups; make it smaller")
        if depth > _MAX_GROUPS:
            raise GrammarError(f"the grammar has groups nested deeper than {_MAX_GROUPS}; name some as rules")


def _check_inline_schema(grammar: str, at: int) -> int:
    while at < len(grammar) and grammar[at] in " \t\r\n":
        at += 1
    try:
        schema, end = json.JSONDecoder().raw_decode(grammar, at)
    except (ValueError, RecursionError):
        raise GrammarError("the grammar: what follows %json is not a JSON schema") from None
    check_tree(schema, "the grammar: the schema after %json")
    return end


# -- GBNF --------------------------------------------------------------------------------------------------

_GBNF = re.compile(
    r"""\s+ | \#[^\n]*
      | (?P<rule>[A-Za-z0-9_-]+)\s*::=
      | (?P<name>[A-Za-z0-9_-]+)
      | "(?P<text>(?:[^"\\]|\\.)*)"
      | \[(?P<set>(?:[^\]\\]|\\.)*)\]
      | \{\s*(?P<low>[0-9]{1,9})\s*(?P<comma>,)?\s*(?P<high>[0-9]{1,9})?\s*\}
      | (?P<mark>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    '"': '"',
    "\\": "\\",
    "[": "[",
    "]": "]",
    "-": "-",
    "^": "^",
    "/": "/",
}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|([^\\])", re.DOTALL)


def gbnf_to_lark(grammar: str) -> str:
    """llama.cpp's notation as Lark. Rules that call no rule recursively become tokens, as Lark wants them."""
    bodies: dict[str, list[str]] = {}
    calls: dict[str, set[str]] = {}
    body: list[str] = []
    current = ""
    at = 0
    while at < len(grammar):
        found = _GBNF.match(grammar, at)
        if found is None:
            line = grammar.count("\n", 0, at) + 1
            raise GrammarError(f"the grammar, line {line}: {grammar[at : at + 20]!r} is not GBNF")
        at = found.end()
        kind = found.lastgroup
        if kind == "rule":
            current = found["rule"]
            if current in bodies:
                raise GrammarError(f"the grammar defines {current!r} twice")
            body = bodies[current] = []
            calls[current] = set()
        elif kind is None:
            continue
        elif not current:
            raise GrammarError("the grammar must begin with a rule such as: root ::= ...")
        elif kind == "name":
            calls[current].add(found["name"])
            body.append("@" + found["name"])
        elif kind == "text":
            body.append(text_literal("".join(_characters(found["text"]))))
        elif kind == "set":
            body.append(_class_literal(found["set"]))
        elif kind == "mark":
            body.append("/(?s:.)/" if found["mark"] == "." else found["mark"])
        else:
            low, high = found["low"], found["high"]
            body.append(
                f"{{{low},{high}}}" if high else f"{{{low},}}" if found["comma"] else f"{{{low},{low}}}"
            )
    unknown = sorted({name for names in calls.values() for name in names} - bodies.keys())
    if unknown:
        raise GrammarError(f"the grammar uses {unknown[0]!r}, which it does not define")
    return _lark_of(bodies, _token_names(calls))


def _token_names(calls: dict[str, set[str]]) -> set[str]:
    """The rules that reach no recursion."""
    tokens: set[str] = set()
    changed = True
    callers: dict[str, list[str]] = {name: [] for name in calls}
    for name, called in calls.items():
        for other in called:
            callers[other].append(name)
    left = {name: len(called) for name, called in calls.items()}
    ready = [name for name, count in left.items() if count == 0]
    while ready and changed:
        name = ready.pop()
        tokens.add(name)
        for caller in callers[name]:
            left[caller] -= 1
            if left[caller] == 0:
                ready.append(caller)
    return tokens


def _lark_of(bodies: dict[str, list[str]], tokens: set[str]) -> str:
    names = {name: f"{'T' if name in tokens else 'r'}{i}" for i, name in enumerate(bodies)}
    lines = [f"start: {names['root']}"]
    for name, body in bodies.items():
        text, before = "", "("
        for word in [*body, ")"]:
            if word in "|)" and before in "(|":  # Lark wants the empty alternative written out
                text += ' ""'
            spaced = names[word[1:]] if word.startswith("@") else word
            text += spaced if word[0] in "*+?{" else " " + spaced
            before = word
        lines.append(f"{names[name]}:{text[:-2]}")
    return "\n".join(lines) + "\n"


def _characters(text: str) -> Iterator[str]:
    for two, four, eight, letter, plain in _ESCAPE.findall(text):
        digits = two or four or eight
        if digits:
            if int(digits, 16) > 0x10FFFF:
                raise GrammarError(f"the grammar holds the escape \\U{digits}, which is no character")
            yield chr(int(digits, 16))
        elif letter:
            if letter not in _ESCAPES:
                raise GrammarError(f"the grammar holds the unknown escape \\{letter}")
            yield _ESCAPES[letter]
        else:
            yield plain


def _class_literal(text: str) -> str:
    """[a-z_] as a regex whose characters are all written as code points."""
    inverted = text.startswith("^")
    out, start = [], 1 if inverted else 0
    marks = [(char, raw == "-") for raw, char in _class_characters(text[start:])]
    at = 0
    while at < len(marks):
        if at + 2 < len(marks) and marks[at + 1][1]:
            low, high = ord(marks[at][0]), ord(marks[at + 2][0])
            if low > high:
                raise GrammarError(
                    f"the grammar holds the range {marks[at][0]}-{marks[at + 2][0]}, which is empty"
                )
            out.append(f"\\u{{{low:x}}}-\\u{{{high:x}}}")
            at += 3
        else:
            out.append(f"\\u{{{ord(marks[at][0]):x}}}")
            at += 1
    if not out:
        return "/(?s:.)/" if inverted else '""'
    return f"/[{'^' if inverted else ''}{''.join(out)}]/"


def _class_characters(text: str) -> Iterator[tuple[str, str]]:
    for found in _ESCAPE.finditer(text):
        yield found[0], next(_characters(found[0]))


# -- the vocabulary ----------------------------------------------------------------------------------------


class Vocabulary:
    """llguidance's view of a tokenizer: a trie of the bytes of all tokens, and grammars compiled for it.

    Markers (control tokens and, in Gemma 4, its markup) are never text: only a rule that names their id
    reaches them.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        guidance = _llguidance()
        types = tokenizer._types
        markup = [_TYPE_USER, _TYPE_UNUSED] if tokenizer.model == "gemma4" else [_TYPE_UNUSED]
        special = tokenizer._hidden.union(np.flatnonzero(np.isin(types, markup)).tolist())
        self.n_vocab = tokenizer.n_vocab
        self.n_words = (self.n_vocab + 31) // 32
        self.special = frozenset(special)
        ends = sorted(tokenizer.eos_ids) or [0]
        view = _TokenView(tokenizer, sorted(special), ends[0])
        try:
            wrapper: Any = guidance.TokenizerWrapper(view)
            self.native = guidance.LLTokenizer(wrapper, n_vocab=self.n_vocab, eos_token=ends)
        except Exception as error:
            raise GrammarError(f"the vocabulary cannot be used for constrained answers ({error})") from None
        self.ends = bits(self.native.eos_tokens, self.n_words)
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, source: str, what: str = "grammar") -> "llguidance.LLMatcher":
        """A fresh matcher at the beginning of the grammar; compiled once, then copied."""
        with self._lock:
            pristine = self._compiled.get(source)
            if pristine is not None:
                self._compiled.move_to_end(source)
        if pristine is None:
            guidance = _llguidance()
            pristine = on_own_stack(
                lambda: guidance.LLMatcher(self.native, source, log_level=0, limits=_limits(guidance))
            )
            if pristine.get_error():
                raise GrammarError(f"the {what} cannot be used: {_reason(pristine.get_error())}")
            with self._lock:
                self._compiled[source] = pristine
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
        copy: llguidance.LLMatcher = pristine.deep_copy()
        return copy


class _TokenView:
    """What llguidance asks of a tokenizer. Holds it weakly: the native side keeps this object for ever."""

    def __init__(self, tokenizer: "Tokenizer", special: list[int], end: int) -> None:
        self._tokenizer = weakref.ref(tokenizer)
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_id
        self.tokens = tokenizer._pieces
        self.special_token_ids = special

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is wanted")
        tokenizer = self._tokenizer()
        return [] if tokenizer is None else tokenizer.encode(text, add_bos=False, special=False)


def bits(ids: Sequence[int] | frozenset[int], n_words: int) -> NDArray[np.uint32]:
    """A mask with the bits of `ids` set: uint32 [n_words]. Ids outside are left out."""
    mask = np.zeros(n_words, np.uint32)
    for token in ids:
        if 0 <= token < 32 * n_words:
            mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask


_vocabularies: "weakref.WeakKeyDictionary[Tokenizer, Future[Vocabulary]]" = weakref.WeakKeyDictionary()
_vocabularies_lock = threading.Lock()


def prepare_guidance(tokenizer: "Tokenizer") -> None:
    """Begins to build the vocabulary on a thread; about a second for 262,144 tokens."""
    _building(tokenizer)


def guidance_tokenizer(tokenizer: "Tokenizer") -> Vocabulary:
    """The vocabulary of this tokenizer, built once."""
    return _building(tokenizer).result()


def guidance_memory(tokenizer: "Tokenizer") -> int:
    """Bytes that building the vocabulary will take; 0 once it is built."""
    return 0 if tokenizer in _vocabularies else tokenizer.n_vocab * _PER_TOKEN


def _building(tokenizer: "Tokenizer") -> "Future[Vocabulary]":
    with _vocabularies_lock:
        building = _vocabularies.get(tokenizer)
        if building is None or (building.done() and building.exception() is not None):
            building = background(Vocabulary, tokenizer)
            _vocabularies[tokenizer] = building
        return building


# -- native calls ------------------------------------------------------------------------------------------


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("constrained answers need one more package: pip install llguidance") from None
    return llguidance


def _limits(guidance: Any) -> Any:
    return guidance.LLParserLimits(
        max_items_in_row=4000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _validate(source: str, kind: str) -> None:
    guidance = _llguidance()
    error = on_own_stack(lambda: guidance.LLMatcher.validate_grammar(source, None, limits=_limits(guidance)))
    if error and not error.startswith("WARNING"):
        raise GrammarError(f"the {kind} cannot be used: {_reason(error)}")


def _reason(error: str) -> str:
    """The library's message without its dumps and drawings, in one line."""
    text = re.split(r"<non-verbose/>|<state>|<backtrace>|<grammar>", error)[0]
    text = re.sub(r"(?m)^ *(\d+ \|.*|\^+)$", "", text)  # the lines of the source, and the mark below
    return " ".join(text.split())[:300] or "no reason was given"


@contextmanager
def _known_stack() -> Iterator[None]:
    """Threads begun within get a stack of known size. Others begun at this moment get it too: harmless."""
    with _stack_lock:
        before = threading.stack_size(_STACK)
        try:
            yield
        finally:
            threading.stack_size(before)


_stack_lock = threading.Lock()


def on_own_stack(job: Callable[[], Any]) -> Any:
    """Runs `job` on a thread of known stack size and waits for it."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(job())
        except BaseException as error:  # a Rust panic is not an Exception
            done.set_exception(GrammarError(f"the grammar cannot be used: {_reason(str(error))}"))

    with _known_stack():
        thread = threading.Thread(target=run, name="gemmule-grammar")
        thread.start()
    thread.join()
    return done.result()


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def background(job: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """Runs `job` on one of the few worker threads that all requests share."""
    global _pool
    with _pool_lock:
        if _pool is None:
            size = max(2, min(8, os.cpu_count() or 2))
            _pool = ThreadPoolExecutor(size, thread_name_prefix="gemmule-mask")
            gate = threading.Barrier(size)
            with _known_stack():  # all workers start here
                started = [_pool.submit(gate.wait) for _ in range(size)]
            for one in started:
                one.result()
        return _pool.submit(job, *arguments)


def _forget_threads() -> None:
    """A forked child has none of the parent's threads."""
    global _pool, _pool_lock, _vocabularies_lock, _stack_lock
    _pool = None
    for tokenizer, building in list(_vocabularies.items()):
        if not building.done():
            del _vocabularies[tokenizer]
    _pool_lock, _vocabularies_lock, _stack_lock = threading.Lock(), threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)

"""Grammars: the four ways to give one, what they accept, and hostile ones refused in bounded time."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import threading
import time
import weakref
from typing import Any

import pytest

from constraint_helpers import TOKENIZER, SmallFile, allowed, spell, spelled
from gemmule import GrammarError, Tokenizer
from gemmule._chat.constraint import answer_constraint
from gemmule._chat.grammar import (
    background,
    gbnf_to_lark,
    grammar_of,
    guidance_tokenizer,
    json_source,
    prepare_guidance,
)
from gemmule._chat.schema import SchemaSpec


def accepts(text: str, **kind: Any) -> bool:
    grammar = grammar_of(**kind)
    assert grammar is not None
    constraint = answer_constraint(grammar, TOKENIZER, eos_ids=TOKENIZER.eos_ids)
    try:
        return spell(constraint, text)
    finally:
        constraint.close()


def test_nothing_given_is_no_grammar() -> None:
    assert grammar_of() is None
    with pytest.raises(
        ValueError, match="only one of schema, regex, choices and grammar, not regex and grammar"
    ):
        grammar_of(regex="a", grammar="start: A")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "10"], ["2", "13", "3.0", " 3"]),
        (
            {"properties": {"a": {"type": "string"}, "b": {"type": "null"}}, "required": ["a"]},
            ['{"a":"x"}', '{"a": "x", "b": null}', '{\n  "a": "é🙂\\n",\n  "b": null\n}'],
            [
                "{}",
                '{"b":null}',
                '{"a":"x","c":1}',
                '{"a":  "x"}',
                '{"a":\n\n"x"}',
                '{"a":"x"}\n',
                '{"a":"\n"}',
            ],
        ),
        ({"enum": ["a", 1, None]}, ['"a"', "1", "null"], ["a", '"b"', "2"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"x"']),
        (list[bool], ["[]", "[true, false]", "[\n true\n]"], ["[1]", "[,]"]),
        ({}, ["[]", '{"a": [1, "x"]}', "true"], ["tru", ""]),
    ],
)
def test_schemas(schema: Any, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(text, schema=schema), text
    for text in bad:
        assert not accepts(text, schema=schema), text


@pytest.mark.parametrize(
    ("regex", "good", "bad"),
    [
        (r"\d{3}-[a-z]+", ["123-abc"], ["12-abc", "123-", "x123-abc"]),
        ("^a|b$", ["a", "b"], ["ab", "c"]),
        (r"a/b\\", ["a/b\\"], ["a/b"]),
        ("a\nb|c", ["a\nb", "c"], ["a", "b"]),
        (r"é+🙂?", ["éé🙂", "é"], ["🙂"]),
        ("a.c", ["abc"], ["a\nc"]),
        (r"\$\d+\$", ["$5$"], ["5", "$5"]),
    ],
)
def test_regexes_match_the_whole_answer(regex: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(text, regex=regex), text
    for text in bad:
        assert not accepts(text, regex=regex), text


def test_choices() -> None:
    choices = ["yes", "yes and no", 'a "quote"', "日本", "x\ny", "yes"]
    for text in choices:
        assert accepts(text, choices=choices)
    for text in ("ye", "yes ", "no", "yes and"):
        assert not accepts(text, choices=choices)
    for wrong in ([], ["a", ""], [str(i) for i in range(5000)], ["\ud800"]):
        with pytest.raises(GrammarError):
            grammar_of(choices=wrong)
    for kind in ("abc", [1]):
        with pytest.raises(TypeError):
            grammar_of(choices=kind)  # type: ignore[arg-type]


LARK = """
// sums
start: term ("+" term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]+/
"""
GBNF = r"""
root   ::= term ("+" term)*   # sums
term   ::= num |
           "(" root ")"
num    ::= [0-9]+
"""


@pytest.mark.parametrize("grammar", [LARK, GBNF])
def test_lark_and_gbnf(grammar: str) -> None:
    for text in ("1", "12+(3+4)", "((7))"):
        assert accepts(text, grammar=grammar), text
    for text in ("", "1+", "(1", "a", "1 + 2"):
        assert not accepts(text, grammar=grammar), text


def test_gbnf_in_detail() -> None:
    grammar = r'root ::= "a\x41\u00e9\U0001F642\n" [^a-y\]] [é-ü-] . ws{2} opt? | ("x" | )"y"' + "\n"
    grammar += r"ws ::= [ \t] " + "\n" + r'opt ::= "1"{1,2} "2"{2,}'
    for text in ("aAé🙂\nz-\n  ", "aAé🙂\nzíq\t 122", "aAé🙂\nzü.  11222", "xy", "y"):
        assert accepts(text, grammar=grammar), text
    for text in ("aAé🙂\nb-.  ", "aAé🙂\nz-. ", "aAé🙂\nz-.  12", "x"):
        assert not accepts(text, grammar=grammar), text


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("root ::= a", "uses 'a', which it does not define"),
        ('root ::= "a"\nroot ::= "b"', "defines 'root' twice"),
        ('root ::= "a" ; "b"', "line 1: '; \"b\"' is not GBNF"),
        (r'root ::= "\q"', "unknown escape"),
        (r'root ::= "\Uffffffff"', "no character"),
        ("root ::= [z-a]", "range z-a"),
        ("start: a", "unknown name"),
        ("start: /(/", "regex"),
        ("begin: A", "neither a rule 'start:'"),
        ("start: %json {", "not a JSON schema"),
        ('start: %json {"maxItems": 20000}', "10000 is the most"),
        ('start: ("a" "b"){20000}', "repeats 20000 times"),
        ("start: A\nA: B\nB: A", "circular"),
    ],
)
def test_wrong_grammars_say_why(grammar: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        grammar_of(grammar=grammar)


def test_reasons_come_without_drawings() -> None:
    with pytest.raises(GrammarError, match=r"regex parse error: \(\?:\(\) error: unclosed group$"):
        grammar_of(regex="(")


def chain(rule: str, body: str, end: str, count: int) -> str:
    lines = [f"start: {rule}0", *(f"{rule}{i}: {body.format(f'{rule}{i + 1}')}" for i in range(count))]
    return "\n".join([*lines, f"{rule}{count}: {end}"])


HOSTILE: dict[str, dict[str, Any]] = {
    "nested groups": {"grammar": "start: " + "(" * 100_000 + '"a"' + ")" * 100_000},
    "nested groups in GBNF": {"grammar": "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000},
    "open groups": {"grammar": "start: " + "(" * 5_000},
    "a chain of rules": {"grammar": chain("r", "{}", '"a"', 20_000)},
    "a chain of optional rules": {"grammar": chain("r", '"x" {}?', '"a"', 8_000)},
    "a chain of tokens": {"grammar": chain("R", "{}", '"a"', 20_000)},
    "a chain in GBNF": {
        "grammar": chain("r", "{}", '"a"', 20_000).replace(":", " ::=").replace("start", "root")
    },
    "doubling tokens": {"grammar": chain("R", "{0} {0}", '"a"', 40)},
    "ten megabytes": {"grammar": 'start: "a"\n' + "// x\n" * 2_000_000},
    "a long regex": {"regex": "abcdefghij" * 1_000_000},
    "repeats of repeats": {"regex": "(a*)*{1000}{1000}"},
    "repeats in groups": {"regex": "((a{1000}){1000}){1000}"},
    "nested regex": {"regex": "(" * 100_000 + "a" + ")" * 100_000},
    "nested regex, allowed depth": {"regex": "(" * 60 + "a" + ")*" * 60},
    "look-around": {"regex": "(?=a)a"},
    "wide enum": {"schema": {"enum": [f"value {i}" for i in range(100_000)]}},
    "long token": {"regex": "[a-z]{1,9999}" * 20},
    "a schema that multiplies": {
        "schema": {"allOf": [{"anyOf": [{"required": [f"{c}{i}"]} for c in "ab"]} for i in range(30)]}
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_are_refused_in_time(name: str) -> None:
    begun = time.process_time()
    with pytest.raises(GrammarError) as caught:
        grammar_of(**HOSTILE[name])
    assert time.process_time() - begun < 2
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


HEAVY: dict[str, dict[str, Any]] = {
    "left recursion": {"grammar": 'start: start "a" | "a"'},
    "only left recursion": {"grammar": 'start: start "a"'},
    "only itself": {"grammar": "start: start"},
    "ambiguous": {"grammar": 'start: s\ns: s s | "a" | ""'},
    "doubling rules": {"grammar": chain("r", "{0} {0}", '"a"', 40)},
    "many repeats": {"grammar": 'start: (("a" "b"){1000}){1000}'},
    "states": {"regex": "(a|b)*a(a|b){20}"},
    "many optionals": {"regex": "(a?){200}a{200}"},
    "counted classes": {"regex": r"[a-zA-Z\w\p{L}]{1,500}" * 8},
    "long string": {"schema": {"type": "string", "minLength": 9000, "maxLength": 10_000}},
    "nested arrays": {"schema": {"items": {"items": {"items": {"maxLength": 10_000}, "maxItems": 10_000}}}},
    "many keys": {"schema": {"properties": {f"k{i}": {"type": "integer"} for i in range(500)}}},
    "large step": {"schema": {"type": "integer", "multipleOf": 999_999_937}},
    "recursion": {"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}},
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_grammars_run_in_bounded_steps_or_stop(name: str) -> None:
    """A grammar that passes the checks may still be too much at some token: then that is a GrammarError."""
    rng = random.Random(5)
    begun = time.process_time()
    error = ""
    try:
        grammar = grammar_of(**HEAVY[name])
        assert grammar is not None
        constraint = answer_constraint(grammar, TOKENIZER, eos_ids=TOKENIZER.eos_ids)
        assert time.process_time() - begun < 2
        for _ in range(60):
            begun = time.process_time()
            if constraint.finished:
                break
            mask = constraint.mask()
            assert mask is not None
            constraint.accept(rng.choice(allowed(mask)))
            assert time.process_time() - begun < 1
        constraint.close()
    except GrammarError as caught:
        error = str(caught)
    assert time.process_time() - begun < 2
    assert "\n" not in error


def test_long_chains_within_the_limit_compile() -> None:
    """As deep as the limit allows, on the compiler's own stack."""
    assert grammar_of(grammar=chain("r", '"x" ("b" | {})', '"a"', 950)) is not None
    assert grammar_of(grammar=chain("R", '"x" ("b" | {})', '"a"', 950)) is not None


def test_a_vocabulary_is_built_once_and_dies_with_its_tokenizer() -> None:
    tokenizer = Tokenizer(SmallFile())
    prepare_guidance(tokenizer)
    vocabulary = guidance_tokenizer(tokenizer)
    assert guidance_tokenizer(tokenizer) is vocabulary
    gone = weakref.ref(tokenizer)
    del tokenizer, vocabulary
    gc.collect()
    assert gone() is None


def test_compiled_grammars_are_kept_within_bounds() -> None:
    vocabulary = guidance_tokenizer(TOKENIZER)
    for i in range(40):
        grammar = grammar_of(choices=[f"word {i}"])
        assert grammar is not None
        vocabulary.matcher(grammar.source)
    assert len(vocabulary._compiled) <= 32


def test_the_threads_are_few_and_shared() -> None:
    background(int).result()
    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("gemmule-")}
    for _ in range(50):
        accepts("ab", regex="[ab]+")
    after = {thread.name for thread in threading.enumerate() if thread.name.startswith("gemmule-")}
    assert after == before
    assert len(after) <= 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gets_threads_of_its_own() -> None:
    assert accepts("ab", regex="[ab]+")
    child = os.fork()
    if child == 0:
        os._exit(0 if accepts("ba", regex="[ab]+") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_markers_are_never_text() -> None:
    """A free string may spell a marker, but its token is not among the allowed ones."""
    grammar = grammar_of(regex="(?s:.*)")
    assert grammar is not None
    constraint = answer_constraint(grammar, TOKENIZER, eos_ids=[1])
    options = set(allowed(constraint.mask()))  # type: ignore[arg-type]
    special = guidance_tokenizer(TOKENIZER).special
    assert options.isdisjoint(special - {1})
    plain = {i for i in range(TOKENIZER.n_vocab) if TOKENIZER._types[i] == 1}
    assert plain <= options
    assert accepts("<|tool_call>"[:5], regex="(?s:.*)")
    assert not accepts("<|tool_call>", regex="(?s:.*)")


def test_gbnf_literals_that_look_like_grammar() -> None:
    grammar = r'root ::= "|)" ( | "(|") "\"{" ("*" |) "//#"'
    assert accepts('|)(|"{*//#', grammar=grammar)
    assert accepts('|)"{//#', grammar=grammar)
    assert not accepts('|)"{*', grammar=grammar)


def test_gbnf_becomes_tokens_where_nothing_recurses() -> None:
    lark = gbnf_to_lark('root ::= "[" (item ("," item)*)? "]"\nitem ::= word | root\nword ::= [a-z]+')
    assert re.search(r"^T\d: /\[.*\]/\+$", lark, re.MULTILINE)
    assert len(spelled("é")) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": "array", "items": {"type": "integer", "minimum": 3}},
        {"type": "integer", "minimum": 10**15},
    ],
)
def test_integers_have_an_end(schema: dict[str, Any]) -> None:
    """A model that writes digit after digit must come to an end."""
    source = json.loads(json_source(SchemaSpec.of(schema).json_schema))["grammars"][0]["json_schema"]
    integer = source.get("items", source)
    assert integer["minimum"] <= integer["maximum"] == 10**15

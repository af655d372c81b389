"""Templates as hostile programs: nothing is reached, everything ends; real templates render as ever."""
# ruff: noqa: E501  (tables of cases, one a line)

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import gemmule
from gemmule._chat import gemma4
from gemmule._chat.messages import normalize
from gemmule._chat.render import render
from gemmule._chat.template import ChatTemplate, known_version

OWN_SOURCE = Path(gemma4.__file__).with_name("gemma4.jinja").read_text(encoding="utf-8")
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


def run(source: str, **variables: Any) -> str:
    return ChatTemplate(source, name="x.gguf").render({"messages": MESSAGES, **variables})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}{{ ''['__class__']['__mro__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ messages|attr('__init__') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ range.__self__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{% set n = namespace() %}{{ n.__class__ }}",
        "{% set n = namespace() %}{{ n|attr('_Namespace__attrs') }}",
        "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
        "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}",
        "{% for x in messages %}{{ loop._iterator.__class__ }}{% endfor %}",
        "{{ ''.format.__self__ }}{{ '{0.__class__}'.format(1) }}",
        "{{ '{x.__class__}'.format(x=1) }}",
        "{{ ''.join.__class__ }}",
        "{{ messages[0].items.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ messages|map('attr', '__class__')|list }}",
        "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list }}",
        "{{ messages|selectattr('__class__.__mro__')|list|attr('__len__') }}",
        "{{ get_flashed_messages.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends '/etc/passwd' %}",
        "{% from 'x' import y %}",
        "{{ strftime_now('%999999999d') }}",
        "{{ _printed }}{{ environment.filters }}{{ context.environment }}",
        "{{ x|each_of(-5) }}",
        "{{ undefined_thing.attribute }}",
        "{% if %}",
        "{{ 'a'.translate({}) }}",
        "{{ 'a'.encode() }}",
    ],
)
def test_nothing_is_reached(source: str) -> None:
    try:
        out = run(source)
    except gemmule.FormatError as error:
        assert str(error).startswith("x.gguf: the chat template ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:  # what is undefined prints nothing
        assert out.strip("[]{}, ") == "" or "Undefined" in out, out


GIANTS = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%s' * 99999999 }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{0:{1}}'.format(1, 9999999999) }}",
    "{{ 'a'|center(999999999) }}",
    "{{ 'a'.center(999999999) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'a'.zfill(999999999) }}",
    "{{ '\t'.expandtabs(999999999) }}",
    "{{ ('a\n' * 9999999)|indent(999999999) }}",
    "{{ 'a'|format(1) }}",
    "{{ 10**10**10 }}",
    "{{ 9**999999999 }}",
    "{% set n = namespace(x=7) %}{% for i in range(99999) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{% for i in range(10**18) %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{% set n = namespace(l=[0]) %}{% for x in range(99999) %}{% set n.l = n.l + n.l %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99999) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99999) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99) %}{% set n.s = n.s|replace('b', n.s) %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99) %}{% set n.s = n.s.join([n.s, n.s, n.s]) %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for x in range(99) %}{% set n.s = [n.s, n.s]|join %}{% endfor %}",
    "{% set n = namespace(l=[1]) %}{% for x in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
    "{% set n = namespace(l=[1]) %}{% for x in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l|tojson }}",
    "{% set n = namespace(l=[1]) %}{% for x in range(60) %}{% set n.l = {'a': n.l, 'b': n.l} %}{% endfor %}{{ n.l|string }}",
    "{% set n = namespace(l=[1], m=[1]) %}{% for x in range(60) %}{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}"
    "{% endfor %}{{ n.l == n.m }}",
    "{% set n = namespace(l=[1], m=[1]) %}{% for x in range(60) %}{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}"
    "{% endfor %}{{ n.l in [n.m] }}{{ n.l is eq(n.m) }}",
    "{% set n = namespace(l=(1,)) %}{% for x in range(60) %}{% set n.l = (n.l, n.l) %}{% endfor %}{{ {n.l: 1} }}",
    "{% set n = namespace(l=0) %}{% for x in range(99999) %}{% for y in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n < 40 %}{{ m(n + 1) }}{{ m(n + 1) }}{% endif %}{% endmacro %}{{ m(0) }}",
    "{% for x in [[[]]] recursive %}{{ loop([[[]]]) }}{% endfor %}",
    "{% set s %}{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}{% endset %}",
    "{% macro a() %}{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}{% endmacro %}{{ a()|length }}",
    "{{ ('a' * 9999999).split('a')|length }}{{ ('a' * 9999999)|list|length }}{{ ('a' * 9999999)|list|sort }}",
    "{{ (range(99999)|list * 99999)|sort }}",
    "{{ (range(99999)|list * 99)|unique|list|length }}{{ (['a' * 999999] * 99999)|sort }}",
    "{{ messages|map('upper')|map('upper')|list * 999999999 }}",
    "{{ dict(a=1)|items|list * 999999999 }}",
    "{{ 1|round(-999999999) }}{{ 'a' * 2**62 }}",
    "{% for c in 'a' * 9999999 %}{% for d in 'a' * 9999999 %}{% endfor %}{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 90 + "1" + "]" * 90 + " }}" * 5000,
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ " + "1 + " * 9000 + "1 }}",
    "{{ x" + ".a" * 9000 + " }}",
    "{{ x" + "|upper" * 9000 + " }}",
    "{% if a %}" + "{% elif a %}" * 9000 + "{% endif %}",
    "{% for a in b %}" * 200 + "{% endfor %}" * 200,
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{{ a }}" * 149_000,
    "{{ a }}" * 9_000,
    "{{" * 400_000,
    "{%- " * 200_000,
    "{#" * 400_000,
    " " * 1_000_000 + "{%- if a %}",
    "a" * (2 << 20),
    "é" * ((1 << 19) + 1),
    "{{ " + "9" * 5000 + " }}",
    "{{ '" + "\\u0041" * 90_000 + "' }}",
]  # fmt: skip


def ended(source: str) -> str:
    """What a hostile template came to, in one sentence."""
    try:
        assert len(run(source)) < 16 << 20
    except gemmule.FormatError as error:
        return str(error)
    return "x.gguf: the chat template is harmless"


@pytest.mark.parametrize("source", GIANTS, ids=range(len(GIANTS)))
def test_giants_and_endless_loops_end(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule._chat.template._MAX_SECONDS", 0.5)
    start = time.process_time()
    message = ended(source)
    assert time.process_time() - start < 1.5  # half a second, and a little for slow machines
    assert message.startswith("x.gguf: the chat template ")
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.slow  # counting each allocation takes most of the time
@pytest.mark.parametrize("source", GIANTS, ids=range(len(GIANTS)))
def test_giants_stay_small(source: str) -> None:
    tracemalloc.start()
    try:
        ended(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20


def test_the_time_limit_is_named() -> None:
    with pytest.raises(gemmule.FormatError, match="takes longer than 2 s"):
        run("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_peak_memory_of_a_process() -> None:
    """The resident memory too, not only what Python counts, stays within 64 MB above a harmless template's."""
    program = (
        "import sys, resource; from gemmule._chat.template import ChatTemplate as T\n"
        "try: T(sys.argv[1]).render({'messages': []})\n"
        "except ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak(source: str) -> int:
        got = subprocess.run(
            [sys.executable, "-c", program, source], capture_output=True, text=True, check=True
        )
        return int(got.stdout)

    base = peak("hi")
    for source in (
        "{% set n = namespace(l=0) %}{% for x in range(99999) %}{% for y in range(99999) %}{% set n.l = [n.l] %}"
        "{% endfor %}{% endfor %}",
        "{% set s %}{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}{% endset %}",
        "{{ ('é' * 9999999).split('é') }}",
    ):
        assert peak(source) - base < 64 << 10


# -- what real templates do --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{%- for m in messages -%}{{ loop.index0 }}{{ m.role }}{{ m['content']|trim }};{%- endfor -%}", "0userHi;1assistantYes.;"),
        ("{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.revindex }}{% endfor %}", "2False22True1"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}", "Hi"),
        ("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{% macro m(a, b='x') %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}{{ m(1) }}{% call m(2) %}c{% endcall %}", "1x2xc"),
        ("{{ messages[0].content[1:] }}{{ messages[::-1][0].role }}{{ messages[1:]|length }}{{ messages[-1].role }}", "iassistant1assistant"),
        ("{{ {'b': 1, 'A': [1, 'x']}|tojson }}{{ {'é': none}|tojson(indent=1) }}", '{"b": 1, "A": [1, "x"]}{\n "é": null\n}'),
        ("{% for k, v in {'b': 1, 'A': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'b': 1}.items() %}{{ k }}{% endfor %}", "A2b1b"),
        ("{{ 'a-b'.split('-')[1] }}{{ ' x '.strip() }}{{ 'ab'.startswith('a') }}{{ 'ab'.startswith(('x', 'a')) }}{{ 'b' in 'abc' }}", "bxTrueTrueTrue"),
        ("{{ [1, 2] + [3] }}{{ (1, 2)|length }}{{ 'a' ~ 1 ~ none }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 'a' * 3 }}", "[1, 2, 3]2a1None338aaa"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}", "Hi"),
        ("{{ messages|rejectattr('role', 'eq', 'user')|list|length }}{{ ['b', 'a']|sort|first }}{{ [3, 1]|max }}", "1a3"),
        ("{{ x is defined }}{{ x|default('d') }}{{ none is none }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is sequence }}", "FalsedTrueTrueTrueTrue"),
        ("{{ 1 < 2 < 3 }}{{ 1 in [1, 2] }}{{ 3 not in (1, 2) }}{{ {'a': [1]} == {'a': [1]} }}{{ [1] != [2] }}", "TrueTrueTrueTrueTrue"),
        ("{% generation %}x{% endgeneration %}{{ '%s and %s' % ('a', 1) }}{{ '{} {b}'.format('c', b=2) }}", "xa and 1c 2"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x }}{% filter upper %}a{% endfilter %}{{ 'a\nb'|indent(2) }}", "a1Aa\n  b"),
        ("{% for a in [[1, []], [2, [[3, []]]]] recursive %}{{ a[0] }}{{ loop(a[1]) }}{% endfor %}", "123"),
        ("{{ messages[0].missing }}{{ messages[9] }}{{ messages[0].get('role', 'x') }}{{ messages[0].get('y', 'x') }}", "userx"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str) -> None:
    assert run(source) == expected


GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set loop_messages = messages -%}"
    "{%- endif -%}{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}"
    "{%- endif -%}{{ '<start_of_turn>' + message['role'] + '\n' + (first if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def test_a_template_of_another_family() -> None:
    template = ChatTemplate(GEMMA3)
    rendered = render(normalize("a <end_of_turn> b", system="S"), template=template)
    assert (
        rendered.text
        == "<bos><start_of_turn>user\nS\n\na <end_of_turn> b<end_of_turn>\n<start_of_turn>model\n"
    )
    assert [p.text for p in rendered.pieces if not getattr(p, "special", True)] == ["<end_of_turn>"]
    with pytest.raises(gemmule.FormatError, match="roles must alternate"):
        render(normalize(["a", "b"]), template=template)


def test_versions() -> None:
    gemma = "<|turn><|tool_call>"
    assert known_version("{{ messages }}") is None
    assert known_version(gemma) == "launch"
    assert known_version(gemma + "tool_call_id") == "mid"
    assert known_version(gemma + "tool_call_id captured_content") == "current"
    assert known_version(OWN_SOURCE) == "current"
    old, new = ChatTemplate(gemma, name="m.gguf"), ChatTemplate(OWN_SOURCE)
    assert old.is_outdated
    assert not new.is_outdated
    assert new.warnings == ()
    assert old.warnings[0].startswith("m.gguf: ")
    assert len(old.sha256) == 64


def test_a_template_serves_many_threads_at_once() -> None:
    template = ChatTemplate(OWN_SOURCE)
    expected = [render(normalize(f"Hi {i}")).text for i in range(8)]
    wrong: list[str] = []

    def work(i: int) -> None:
        for _ in range(10):
            text = render(normalize(f"Hi {i}"), template=template).text
            if text != expected[i]:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_rendering_is_fast() -> None:
    template = ChatTemplate(OWN_SOURCE)
    history = normalize(MESSAGES)
    render(history, template=template)
    start = time.process_time()
    for _ in range(20):
        render(history, template=template)
    assert (time.process_time() - start) / 20 < 0.02

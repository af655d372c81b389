"""Writes tests/golden/tokenizer_gemma3_270m.json: token ids of varied texts as llama.cpp's own tokenizer
gives them.

Needs the [oracle] extra (xllamacpp) and the demo weights: python tools/make_tokenizer_golden.py MODEL.gguf
"""

# ruff: noqa: RUF001 (look-alike letters are the point of some texts)

import json
import random
import sys
import urllib.request
from pathlib import Path

import xllamacpp

TEXTS = [
    "Hello, world!",
    "Hello  world\n\n\tfoo",
    " leading and trailing ",
    "   three spaces",
    "a" + " " * 40 + "b",
    " " * 31,
    " " * 32,
    " " * 70,
    "\n",
    "\n\n\n",
    "\n" * 31,
    "\n" * 40,
    "a\n \n  \n\tb",
    "\t",
    "\t\t\tindent",
    "\t" * 40,
    "line one\r\nline two\r\n",
    "1234567890",
    "3.14159 -2e10 0x7fff 1,000,000",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    '#include <stdio.h>\n\nint main(void) {\n\tprintf("%d\\n", 42);\n}\n',
    "SELECT * FROM users WHERE name = 'O''Brien';",
    '{"key": [1, 2, {"nested": null}], "text": "\\u00e9"}',
    '<div class="a"><p>Text</p><br/></div>',
    "<table><tr><td>1</td></tr></table>",
    "https://example.com/path?query=1&other=%20#frag",
    "user@example.org",
    "日本語 🙂 é",
    "中文测试,标点。",
    "한국어 문장입니다.",
    "Русский текст и ещё слова",
    "العربية من اليمين",
    "עברית",
    "हिन्दी वाक्य",
    "ไทยไม่มีช่องว่าง",
    "Ελληνικά",
    "Tiếng Việt có dấu",
    "naïve café résumé",
    "e\u0301 combining vs \u00e9",
    "\u00a0non\u00a0breaking\u2003em\u200bzero",
    "🏳️‍🌈👩‍👩‍👧‍👦👍🏽",
    "𝕸𝖆𝖙𝖍 𝒻𝓊𝓃",
    "\U0001f9ff\U00013000\U0010ffff",
    "\u2581under\u2581score",
    "a \u2581 b",
    "\x00\x01\x1f\x7f",
    "\ufeffbom",
    "\ufffd",
    "<bos>text",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<eos><pad><unk><mask>",
    "<unused0><unused99>",
    "<start_of_image><end_of_image>",
    "[multimodal]",
    "<0x41><0xFF>",
    "<start_of_turn",
    "start_of_turn>",
    "< bos >",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ababababababababababab",
    "!!!???...---===***",
    "The quick brown fox jumps over the lazy dog.",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "ALL CAPS and MiXeD cAsE iPhone",
    "x=y+z*w/v%u^t&s|r~q",
    "\\alpha \\frac{1}{2} $E=mc^2$",
    "it's don't we'll I'm",
]


def random_texts(n: int) -> list[str]:
    """Texts nobody would write: random mixtures of scripts, spaces and bytes without a token."""
    rng = random.Random(270)
    alphabet = "abcXYZ019 \n\t.,;<>éßпр日本🙂\u0301\u2581\u200d𐍈"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(n)]


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = 256
    server = xllamacpp.Server(params)
    rows = []
    for text in TEXTS + random_texts(24):
        request = {"content": text, "add_special": False, "parse_special": True, "with_pieces": False}
        call = urllib.request.Request(
            f"{server.listening_address}/tokenize",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=60) as reply:
            rows.append({"text": text, "ids": json.load(reply)["tokens"]})
    target = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tokenizer_gemma3_270m.json"
    lines = ",\n".join(json.dumps(row) for row in rows)
    target.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()

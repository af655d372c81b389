"""Tokenizer files become tokenizer.* keys, and the keys split text as the source does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from checkpoint_helpers import edit_json, tiny_folder
from gemmule import Error, FormatError, UnsupportedError
from gemmule._convert.checkpoint import load_checkpoint
from gemmule._convert.metadata import read_card
from gemmule._tokenizer import Tokenizer

P = "tokenizer.ggml."
TEXTS = [
    "Hello  world\n\n\tfoo   bar\r\n",
    "user model the_hello ing tion was for with",
    "日本é 🙂 \u0000 \ud7ff",
    "<bos><|turn>user\nHello<turn|>\n<b>x</b> <unused3>",
]


class Keys:
    """A bundle's metadata as the file a Tokenizer reads."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder)
        self.bundle = load_checkpoint(folder)
        self.values = {kv.key: kv.value for kv in self.bundle.text.metadata}

    def keys(self) -> list[str]:
        return list(self.values)

    def get(self, key: str) -> Any:
        return self.values[key]

    def get_token_bytes(self, key: str) -> list[bytes]:
        tokens: list[bytes] = self.values[key]
        return tokens


def write(tmp_path: Path, variant: str = "12b-text") -> Path:
    return tiny_folder.write_folder(tmp_path / "m", variant)


@pytest.mark.parametrize("variant", ["12b-text", "gemma3-text"])
def test_text_is_split_as_by_the_source(variant: str, tmp_path: Path) -> None:
    folder = write(tmp_path, variant)
    keys = Keys(folder)
    assert keys.bundle.warnings == ()
    ours = Tokenizer(keys)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False).ids
        assert ours.decode(ours.encode(text, add_bos=False)) == text


def test_gemma4_keys(tmp_path: Path) -> None:
    folder = write(tmp_path)
    keys = Keys(folder)
    index = {token.decode(): i for i, token in enumerate(keys.get(P + "tokens"))}
    types = keys.get(P + "token_type")
    assert keys.get(P + "model") == "gemma4"
    assert set(keys.get(P + "scores").tolist()) == {-1000.0}
    assert [types[index[t]] for t in ("<pad>", "<|turn>", "<|image|>")] == [3, 3, 3]
    assert [types[index[t]] for t in ("<|channel>", '<|"|>', "<tool_response|>")] == [4, 4, 4]
    assert [types[index[t]] for t in ("<0x00>", "<0xFF>")] == [6, 6]
    assert [types[index[t]] for t in ("user", "▁▁", "<unused0>")] == [1, 1, 1]
    assert keys.get(P + "merges")[:2] == [b"\n \n", "▁ ▁".encode()]
    names = ("bos", "eos", "unknown", "padding", "mask")
    assert [keys.get(f"{P}{name}_token_id") for name in names] == [2, 1, 3, 0, 4]
    assert keys.get(P + "eot_token_id") == index["<turn|>"]
    ends = [index[t] for t in ("<eos>", "<turn|>", "<|tool_response>")]
    assert keys.get("gemmule.tokenizer.eos_token_ids").tolist() == ends
    assert keys.get(P + "suppress_tokens").tolist() == [index["<audio|>"], index["<image|>"]]
    assert keys.get(P + "add_bos_token") is True
    assert keys.get(P + "add_space_prefix") is False
    assert keys.get("tokenizer.chat_template") == tiny_folder.GEMMA4_TEMPLATE


def test_merges_may_be_strings(tmp_path: Path) -> None:
    folder = write(tmp_path)
    pairs = Keys(folder).get(P + "merges")

    def join(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]

    edit_json(folder / "tokenizer.json", join)
    assert Keys(folder).get(P + "merges") == pairs


@pytest.mark.parametrize("with_model", [False, True])
def test_gemma3_scores(with_model: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, "gemma3-text")
    if with_model:
        (folder / "tokenizer.model").write_bytes(tiny_folder.sentencepiece_model())
    keys = Keys(folder)
    assert keys.bundle.warnings == ()
    tokens = [token.decode() for token in keys.get(P + "tokens")]
    types, scores = keys.get(P + "token_type"), keys.get(P + "scores")
    assert (keys.get(P + "model"), keys.get(P + "pre")) == ("llama", "default")
    assert P + "merges" not in keys.keys()  # noqa: SIM118
    assert tokens[10] == "  "
    assert types[:12].tolist() == [3] * 9 + [4] * 3
    assert types[tokens.index("<unused0>")] == 3
    assert types[tokens.index("<0x41>")] == 6
    normal = scores[types == 1]
    assert normal[0] == 0
    assert (np.diff(normal) < 0).all()


def test_vocabulary_is_padded_to_the_embedding(tmp_path: Path) -> None:
    folder = write(tmp_path)

    def drop(tokenizer: dict[str, Any]) -> None:
        del tokenizer["model"]["vocab"]["<unused4>"]
        tokenizer["model"]["vocab"].pop(list(tokenizer["model"]["vocab"])[-1])

    edit_json(folder / "tokenizer.json", drop)
    keys = Keys(folder)
    assert len(keys.get(P + "tokens")) == 640
    assert keys.get(P + "tokens")[-1] == b"[PAD639]"
    assert keys.get(P + "token_type")[-1] == 5
    assert any("1 rows of the embedding have no token" in warning for warning in keys.bundle.warnings)
    assert any("1 ids below 639 have no token" in warning for warning in keys.bundle.warnings)


def test_source_that_splits_differently_travels_along(tmp_path: Path) -> None:
    """A token that only the source splits off: our arrays cannot say it, so the original is kept."""
    folder = write(tmp_path)

    def trick(tokenizer: dict[str, Any]) -> None:
        entry = dict(tokenizer["added_tokens"][0])
        number = tokenizer["model"]["vocab"]["user"]
        tokenizer["added_tokens"].append(
            entry | {"id": number, "content": "user", "special": False, "rstrip": True}
        )
        tokenizer["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}
        tokenizer["model"]["merges"].append(["1", "2"])
        tokenizer["model"]["vocab"]["12"] = tokenizer["model"]["vocab"].pop("<unused0>")

    edit_json(folder / "tokenizer.json", trick)
    keys = Keys(folder)
    assert any("splits" in warning for warning in keys.bundle.warnings)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "user 12 of user"
    assert Tokenizer(keys).encode(text, add_bos=False) == theirs.encode(text, add_special_tokens=False).ids


def test_template_file_wins_and_the_difference_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path)
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template="{{ other }}"))
    keys = Keys(folder)
    assert keys.get("tokenizer.chat_template") == tiny_folder.GEMMA4_TEMPLATE
    assert "differs from the template" in keys.bundle.warnings[0]
    (folder / "chat_template.jinja").unlink()
    assert Keys(folder).get("tokenizer.chat_template") == "{{ other }}"
    entries = [{"name": "default", "template": "{{ a }}"}, {"name": "tool_use", "template": "{{ b }}"}]
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=entries))
    keys = Keys(folder)
    assert keys.get("tokenizer.chat_template") == "{{ a }}"
    assert keys.get("tokenizer.chat_template.tool_use") == "{{ b }}"
    assert keys.get("tokenizer.chat_templates") == [b"tool_use"]


Change = Callable[[dict[str, Any]], Any]


def model(change: Change) -> Change:
    return lambda tokenizer: change(tokenizer["model"])


@pytest.mark.parametrize(
    ("change", "kind", "part"),
    [
        (lambda t: t.pop("model"), FormatError, "the key model"),
        (model(lambda m: m.update(type="Unigram")), UnsupportedError, "Unigram"),
        (model(lambda m: m.update(byte_fallback=False)), UnsupportedError, "byte_fallback"),
        (model(lambda m: m.update(dropout=0.1)), UnsupportedError, "dropout"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), UnsupportedError, "normalizer"),
        (model(lambda m: m.update(vocab=[])), FormatError, "model.vocab"),
        (model(lambda m: m.update(merges=None)), FormatError, "model.merges"),
        (model(lambda m: m["merges"].append(["zz", "qq"])), FormatError, "merge"),
        (model(lambda m: m["merges"].append(["a"])), FormatError, "merge"),
        (model(lambda m: m["merges"].append([["a"], "b"])), FormatError, "merge"),
        (model(lambda m: m["merges"].append(7)), FormatError, "merge"),
        (model(lambda m: m["vocab"].update({"new": 5})), FormatError, "share the id 5"),
        (model(lambda m: m["vocab"].update({"new": "5"})), FormatError, "the id of 'new'"),
        (model(lambda m: m["vocab"].update({"new": [5]})), FormatError, "the id of 'new'"),
        (model(lambda m: m["vocab"].update({"new": -1})), FormatError, "the id of 'new'"),
        (model(lambda m: m["vocab"].update({"new": 640})), FormatError, "641 tokens"),
        (model(lambda m: m["vocab"].update({"[PAD640]": 639 - 8, "x" * 9: 1 << 25})), FormatError, "id"),
        (lambda t: t["added_tokens"].append({"id": 9, "content": "other"}), FormatError, "other"),
        (lambda t: t["added_tokens"].append({"id": "9"}), FormatError, "added_tokens"),
    ],
)
def test_damaged_tokenizers(change: Change, kind: type[Error], part: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    edit_json(folder / "tokenizer.json", change)
    with pytest.raises(kind) as caught:
        load_checkpoint(folder)
    assert part in str(caught.value)
    assert "tokenizer.json" in str(caught.value)


def test_missing_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=r"tokenizer\.json: the file is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("eos_token_id", [1, 700]), ("eos_token_id", "1"), ("suppress_tokens", [-1]), ("top_k", "x")],
)
def test_generation_config_is_checked(key: str, value: object, tmp_path: Path) -> None:
    folder = write(tmp_path)
    edit_json(folder / "generation_config.json", lambda g: g.update({key: value}))
    with pytest.raises(FormatError, match=key):
        load_checkpoint(folder)


@pytest.mark.parametrize("cut", [1, 2, 5, 100, 3000])
def test_cut_sentencepiece_model(cut: int, tmp_path: Path) -> None:
    folder = write(tmp_path, "gemma3-text")
    data = tiny_folder.sentencepiece_model()
    (folder / "tokenizer.model").write_bytes(data[:cut])
    with pytest.raises(FormatError, match="tokenizer"):
        load_checkpoint(folder)
    (folder / "tokenizer.model").write_bytes(data[:50] + b"\xff" * cut + data[50:])
    with pytest.raises(FormatError, match="tokenizer"):
        load_checkpoint(folder)


def test_card_without_a_readme(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "README.md").unlink()
    card = read_card(folder)
    assert (card.name, card.fields) == ("m", {})
    (folder / "README.md").write_bytes(b"---\nlicense: gemma\nextra:\n  nested: x\n- loose\n\xff\n")
    assert read_card(folder).fields["license"] == ["gemma"]

"""Sessions on disk: what comes back goes on by bits, media and conversation included; the rest is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gemmule
from media_files import encoded, pattern, tone
from media_model import write_tiny_12b

IDS = [2, *range(20, 60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gemmule.Model]:
    with gemmule.Model(write_tiny_12b(tmp_path_factory.mktemp("tiny")), n_ctx=2048) as model:
        yield model


def test_a_loaded_session_goes_on(tiny: gemmule.Model, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.session"
    session = tiny.session(n_ctx=256)
    session.generate(IDS, max_tokens=6, seed=4, logit_bias=dict.fromkeys(tiny.tokenizer.eos_ids, -np.inf))
    session.save(path)
    assert [p.name for p in path.parent.iterdir()] == ["a.session"]
    loaded = tiny.load_session(path)
    assert (loaded.n_ctx, loaded.n_tokens) == (256, session.n_tokens)
    np.testing.assert_array_equal(loaded.tokens, session.tokens)
    one, two = (s.generate(max_tokens=9, seed=3) for s in (session, loaded))
    assert one.tokens == two.tokens
    assert one.usage == two.usage
    np.testing.assert_array_equal(loaded.logits, session.logits)
    assert tiny.load_session(path, n_ctx=512).n_ctx == 512
    with pytest.raises(gemmule.ContextLengthError, match="n_ctx"):
        tiny.load_session(path, n_ctx=8)


def test_a_conversation_with_media_comes_back(model: gemmule.Model, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(encoded(pattern(96, 144), "PNG"))
    session = model.session(system="be brief")
    session.chat(["What is ", gemmule.Image(picture, tokens=70), "?"], max_tokens=8, seed=1)
    session.chat([gemmule.Audio(tone(1.0)), "And this?"], max_tokens=8, seed=1)
    session.save(tmp_path / "s")
    picture.unlink()
    loaded = model.load_session(tmp_path / "s")
    assert [m.role for m in loaded.messages] == [m.role for m in session.messages]
    assert [m.text for m in loaded.messages] == [m.text for m in session.messages]
    assert "from a saved session" in repr(loaded.messages)
    loaded.save(tmp_path / "again")  # what was loaded can be saved again
    again = model.load_session(tmp_path / "again")
    replies = [s.chat("Sure?", max_tokens=8, seed=2) for s in (loaded, again)]
    assert replies[0].tokens == replies[1].tokens
    assert replies[0].usage.cached_tokens > model.count_tokens(loaded.messages[:3])
    assert replies[0].usage.image_tokens > 0
    np.testing.assert_array_equal(loaded.logits, again.logits)
    loaded.rewind(0)  # everything is read again, with the vectors that were saved
    np.testing.assert_array_equal(
        loaded.chat((), max_tokens=0).usage.prompt_tokens, model.count_tokens(loaded.messages)
    )


def test_media_off_the_timeline_are_saved_too(model: gemmule.Model, tmp_path: Path) -> None:
    session = model.session()
    session.messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": pattern(96, 96)}, {"type": "text", "text": "?"}],
        }
    ]
    session.save(tmp_path / "s")
    loaded = model.load_session(tmp_path / "s")
    one, two = (s.chat((), max_tokens=5, seed=1) for s in (session, loaded))
    assert one.tokens == two.tokens
    assert one.usage == two.usage


def test_a_picture_inside_the_window_goes_on_by_bits(model: gemmule.Model, tmp_path: Path) -> None:
    image = gemmule.Image(pattern(96, 96), tokens=70)
    session = model.session()
    session.append(["a", image, "b"])
    session.save(tmp_path / "s")
    loaded = model.load_session(tmp_path / "s")
    for one in (session, loaded):
        one.append("c")
    np.testing.assert_array_equal(loaded.logits, session.logits)


def test_other_files_are_refused(tiny: gemmule.Model, model: gemmule.Model, tmp_path: Path) -> None:
    session = tiny.session(n_ctx=64)
    session.append(IDS)
    path = tmp_path / "s"
    session.save(path)
    good = path.read_bytes()
    with pytest.raises(gemmule.FormatError, match="another model"):
        model.load_session(path)
    for bad in (b"", good[:100], good[:-9], good + b"x", b"x" * len(good), good[:-60] + bytes(60)):
        path.write_bytes(bad)
        with pytest.raises(gemmule.FormatError, match="save the session again"):
            tiny.load_session(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(gemmule.ModelNotFoundError, match="saved session"):
            tiny.load_session(missing)


def test_a_conversation_that_makes_no_sense_is_refused(tiny: gemmule.Model, tmp_path: Path) -> None:
    """The checksum is right: whoever wrote the file meant it."""
    core = tiny._engine().session(n_ctx=64)
    core.append(np.array(IDS, np.int32))
    path = tmp_path / "s"

    def write(front: bytes) -> None:
        with path.open("wb") as file:
            core.save(file.fileno(), front)

    def text(**changes: object) -> bytes:
        head = json.dumps({"pending": [], "spans": [], "messages": []} | changes).encode()
        return struct.pack("<Q", len(head)) + head

    write(text())
    assert tiny.load_session(path).n_tokens == len(IDS)
    span = {"first": 0, "n": 1, "kind": "image", "key": ""}
    message = {
        "role": "user", "content": [], "thinking": "", "tool_calls": [], "tool_call_id": None, "name": None,
        "response": None,
    }  # fmt: skip
    part = {"kind": "image", "name": "", "tokens": None, "notes": [], "pieces": []}
    rows = {"kind": "image", "key": "00", "rows": ["blob", 0, 5, 5]}
    for front in (
        b"",
        b"\xff" * 20,
        text()[:-3],
        text(pending=None),
        text(pending=["x"]),
        text(spans=[span]),
        text(messages=3),
        text(messages=[{}]),
        text(messages=[message | {"role": "king"}]),
        text(messages=[message | {"response": 3}]),
        text(messages=[message | {"content": [{}]}]),
        text(messages=[message | {"content": [part | {"pieces": [rows]}]}]),
        text(messages=[message | {"content": [part | {"pieces": [rows | {"rows": ["span", 0]}]}]}]),
    ):
        write(front)
        with pytest.raises(gemmule.FormatError, match="save the session again"):
            tiny.load_session(path)
    for pending in ([-1], [10**9]):
        write(text(pending=pending))
        with pytest.raises(ValueError, match="outside"):
            tiny.load_session(path)


def test_saving_leaves_no_half_a_file(tiny: gemmule.Model, tmp_path: Path) -> None:
    session = tiny.session(n_ctx=64)
    session.append(IDS)
    path = tmp_path / "s"
    session.save(path)
    good = path.read_bytes()
    stop = gemmule.StopToken()
    stop.cancel()
    with pytest.raises(gemmule.Cancelled):
        session.save(path, cancel=stop)
    assert path.read_bytes() == good
    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208
    with pytest.raises(gemmule.Cancelled):
        tiny.load_session(path, cancel=stop)
    np.testing.assert_array_equal(tiny.load_session(path).logits, session.logits)


def test_a_closed_session_cannot_be_saved(tiny: gemmule.Model, tmp_path: Path) -> None:
    session = tiny.session(n_ctx=16)
    session.close()
    for call in (session.fork, lambda: session.save(tmp_path / "s")):
        with pytest.raises(gemmule.Error, match="closed"):
            call()
    assert not list(tmp_path.iterdir())

"""Files on the command line: which words are files, what is in them, and in which order they go."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image as Picture

from gemmule import Audio, Image, MediaError
from gemmule.cli._attach import MediaWishes, attach, attach_all, attach_bytes, content_of, piped, text_block
from gemmule.cli._dragged import dragged_files
from gemmule.cli._question import split_words


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a cat.png"
    Picture.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    import wave

    path = tmp_path / "note.bin"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(bytes(3200))
    return path


def test_the_kind_is_found_by_content(picture: Path, sound: Path, tmp_path: Path) -> None:
    assert attach(str(picture)).kind == "image"
    assert isinstance(attach(str(sound)).part, Audio)
    text = tmp_path / "text.jpg"
    text.write_bytes(b"\xef\xbb\xbfno picture")
    assert (attach(str(text)).kind, attach(str(text)).part) == ("text", "no picture")
    wished = attach(str(picture), None, MediaWishes(image_tokens=70)).part
    assert isinstance(wished, Image)
    assert wished.tokens == 70


def test_what_cannot_be_attached(tmp_path: Path) -> None:
    noise = tmp_path / "noise.bin"
    noise.write_bytes(bytes(range(128, 256)))
    with pytest.raises(MediaError, match="neither an image"):
        attach(str(noise))
    with pytest.raises(MediaError, match="UTF-8"):
        attach(str(noise), "text")
    with pytest.raises(click.UsageError, match="there is no file"):
        attach(str(tmp_path / "none.png"), "image")
    with pytest.raises(click.UsageError, match="is a folder"):
        attach(str(tmp_path))
    with pytest.raises(MediaError, match="fetches nothing"):
        attach("https://example.org/cat.png")


def test_the_order_is_the_one_typed(picture: Path, sound: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("hello", encoding="utf-8")
    typed = ["m.gguf", f"--audio={sound}", "look", str(picture), "-f", str(text), "-a", str(sound)]
    forced = {"audio": [str(sound)], "": [str(sound)], "text": [str(text)]}
    found = attach_all([str(picture)], forced, typed, MediaWishes())
    assert [each.kind for each in found] == ["audio", "image", "text", "audio"]
    content = content_of(found, "look", "piped")
    assert [type(part).__name__ for part in content] == ["Audio", "Image", "Audio", "str"]
    assert content[-1] == f"look\n\n{text}:\n```\nhello\n```\n\npiped"
    with pytest.raises(click.UsageError, match="once only"):
        attach_all([], {"": ["-", "-"]}, [], MediaWishes())


def test_a_text_with_fences_gets_longer_ones() -> None:
    block = text_block(attach_bytes(b"a\n```\nb\n", "x.md"))
    assert block == "x.md:\n````\na\n```\nb\n````"


def test_the_pipe_may_hold_a_picture(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    pipe(b"a text\r\n")
    assert piped(MediaWishes()) == ("a text", [])
    pipe(picture.read_bytes())
    text, found = piped(MediaWishes())
    assert (text, found[0].kind, found[0].path) == ("", "image", None)
    pipe(picture.read_bytes())
    assert attach("-").name == "standard input"


def test_words_become_prompt_and_files(picture: Path, sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = str(picture), str(sound)
    assert split_words(["what is this?", a, b]) == ("what is this?", [a, b])
    assert split_words([a, "what is this?"]) == ("what is this?", [a])
    assert split_words([a]) == (None, [a])
    assert split_words([]) == (None, [])
    assert split_words(["-", a]) == ("-", [a])
    assert split_words(["x" * 5000 + "."]) == ("x" * 5000 + ".", [])
    monkeypatch.chdir(picture.parent)
    (picture.parent / "word").touch()
    assert split_words(["word"]) == ("word", [])
    with pytest.raises(click.UsageError, match="put it in quotes"):
        split_words(["what", "is", "this"])


def test_dragged_paths(picture: Path, sound: Path, tmp_path: Path) -> None:
    escaped = str(picture).replace(" ", "\\ ")
    uri = picture.as_uri()
    for line in (f"'{picture}'", f'"{picture}"', escaped, uri, f"{escaped} ", f"  '{picture}'"):
        assert dragged_files(line) == ("", [picture]), line
    assert dragged_files(f"what is {escaped} and {sound} ?") == ("what is and ?", [picture, sound])
    for line in (
        "what is /none/such.png?",
        "no/relative/path.png",
        "it's /",
        f"{tmp_path}",
        "file://elsewhere/etc/passwd",
        f"http:/{picture}",
    ):
        assert dragged_files(line) == (line, []), line
    two_lines = f"first\n'{sound}'\nlast"
    assert dragged_files(two_lines) == ("first\n\nlast", [sound])

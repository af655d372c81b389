"""The chat templates of a checkpoint folder as tokenizer.chat_template keys.

Sources in rising order: tokenizer_config.json (a text or a list of named ones), chat_template.json,
chat_template.jinja, and additional_chat_templates/NAME.jinja for further names.
"""

import re
from pathlib import Path
from typing import Any

from gemmule._convert.image import Kv
from gemmule._convert.jsonfile import read_bytes, read_object
from gemmule._errors import FormatError

__all__ = ["template_kvs"]


def template_kvs(folder: Path, config: dict[str, Any], warnings: list[str]) -> list[Kv]:
    """The chat templates. A file of its own wins over tokenizer_config.json, as in transformers."""
    texts: dict[str, str] = {}
    inline = config.get("chat_template")
    if isinstance(inline, str):
        texts["default"] = inline
    elif isinstance(inline, list):
        for entry in inline:
            name, text = (
                (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
            )
            if not isinstance(name, str) or not isinstance(text, str):
                raise FormatError(
                    f"{folder / 'tokenizer_config.json'}: an entry of chat_template is damaged."
                )
            texts[name] = text
    path = folder / "chat_template.json"
    if path.exists() and isinstance(text := read_object(path).get("chat_template"), str):
        _replace(warnings, texts, text, path)
    path = folder / "chat_template.jinja"
    if path.exists():
        _replace(warnings, texts, _read_text(path), path)
    extra = folder / "additional_chat_templates"
    if extra.is_dir():
        for path in sorted(extra.glob("*.jinja")):
            texts[path.stem] = _read_text(path)
    for name, text in texts.items():
        if not (text + name).isascii() and re.search("[\ud800-\udfff]", text + name):
            raise FormatError(f"{folder}: the chat template {name!a} holds a lone surrogate.")
    kvs = []
    if "default" in texts:
        kvs.append(Kv("tokenizer.chat_template", "string", texts.pop("default")))
    if texts:
        names = sorted(texts)
        kvs.append(Kv("tokenizer.chat_templates", "array[string]", [name.encode() for name in names]))
        kvs += [Kv(f"tokenizer.chat_template.{name}", "string", texts[name]) for name in names]
    return kvs


def _replace(warnings: list[str], texts: dict[str, str], text: str, path: Path) -> None:
    if texts.get("default", text) != text:
        warnings.append(f"{path}: differs from the template in tokenizer_config.json; this file is used.")
    texts["default"] = text


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, limit_mb=16).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: byte {error.start} is not valid UTF-8.") from None

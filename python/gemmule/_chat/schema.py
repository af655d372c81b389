"""What a caller may give as schema: a JSON schema, a pydantic model, or any type msgspec knows; and the
answer's text read back as a value of that type.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from gemmule._chat.schema_limits import MAX_BYTES
from gemmule._chat.schema_normal import Schema, normalize
from gemmule._errors import GrammarError

__all__ = ["SchemaSpec", "type_schema"]


@dataclass(frozen=True)
class SchemaSpec:
    """What the answer must look like (`json_schema`, in normal form) and how its text becomes a value."""

    json_schema: Schema
    parse: Callable[[str], Any]

    @classmethod
    def of(cls, schema: Any) -> "SchemaSpec":
        """From a JSON schema (dict or JSON text), a pydantic model, or any type msgspec knows: Struct,
        dataclass, TypedDict, NamedTuple, Enum, Literal, and builtins such as list[int].
        """
        if isinstance(schema, str):
            if len(schema) > MAX_BYTES:
                raise GrammarError(f"the schema is longer than {MAX_BYTES} characters; make it smaller")
            try:
                schema = json.loads(schema)
            except RecursionError:
                raise GrammarError("the schema is nested too deeply; make it flatter") from None
            except ValueError as error:
                raise GrammarError(f"the schema is not JSON ({error}); give a dict or JSON text") from None
            if not isinstance(schema, dict | bool):
                raise GrammarError("the schema must be a JSON object")
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        if isinstance(schema, Mapping):
            return cls(normalize(schema), _load)
        if hasattr(schema, "model_json_schema") and hasattr(schema, "model_validate_json"):
            made = _pydantic_schema(schema.model_json_schema, schema)
            return cls(normalize(made, sets=True), _pydantic_parse(schema.model_validate_json))
        try:
            made = type_schema(schema)
        except GrammarError:
            adapter = _pydantic_adapter(schema)
            if adapter is None:
                raise
            made = _pydantic_schema(adapter.json_schema, schema)
            return cls(normalize(made, sets=True), _pydantic_parse(adapter.validate_json))
        return cls(normalize(made, sets=True), _msgspec_parse(schema))


def _load(text: str) -> Any:
    """JSON without the numbers that JSON does not have."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the answer is nested too deeply to be read") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the answer is not complete JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "raise max_tokens if it was cut"
        ) from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the answer holds the number {text[:40]}, which no float can hold")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"the answer holds {text}, which is not JSON")


def _pydantic_adapter(kind: Any) -> Any:
    """pydantic's reading of a type around its models, such as list[Model]; None where there are none."""
    pydantic = sys.modules.get("pydantic")  # whoever has a model has imported it
    if pydantic is None or not _holds_model(kind):
        return None
    try:
        return pydantic.TypeAdapter(kind)
    except Exception:
        return None


def _holds_model(kind: Any) -> bool:
    return hasattr(kind, "model_json_schema") or any(map(_holds_model, get_args(kind)))


def _pydantic_schema(made: Callable[[], Schema], kind: Any) -> Schema:
    try:
        return made()
    except Exception as error:
        raise GrammarError(f"schema {_name(kind)} gives no JSON schema ({error})") from None


def _pydantic_parse(validate: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        _load(text)  # first the shorter message for an answer that was cut
        return validate(text)  # its own error is a ValueError that names the field

    return parse


def type_schema(kind: Any) -> Schema:
    """The JSON schema of a Python type, through msgspec."""
    import msgspec

    try:
        return msgspec.json.schema(kind, ref_template="#/$defs/{name}")
    except TypeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise GrammarError(
            f"schema {_name(kind)} cannot be written as JSON schema ({reason}); "
            "use a JSON schema, a dataclass, a TypedDict, a msgspec Struct or a pydantic model"
        ) from None


def _msgspec_parse(kind: Any) -> Callable[[str], Any]:
    import msgspec

    def parse(text: str) -> Any:
        _load(text)
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the answer does not fit {_name(kind)}: {error}") from None

    return parse


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", None) or repr(kind))[:80]

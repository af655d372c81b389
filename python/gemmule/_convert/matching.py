"""Do the parts of one file belong together? The media embedders must end in the text model's width, and the
drafter must read the same hidden states and the same vocabulary.
"""

from gemmule._convert.image import Image
from gemmule._errors import FormatError

__all__ = ["ROLES", "check_part", "check_parts"]

ROLES = {"mmproj": "clip", "drafter": "gemma4-assistant"}  # section: general.architecture
_TOKENS = "tokenizer.ggml.tokens"


def check_parts(text: Image, sections: dict[str, Image]) -> None:
    """Raises FormatError for a part that does not fit the text model."""
    for name, section in sections.items():
        check_part(text, name, section)


def check_part(text: Image, name: str, section: Image) -> None:
    """The same for one part."""
    if section.architecture != ROLES[name]:
        raise FormatError(
            f"the {name} part is a {section.architecture!r}, not a {ROLES[name]!r}; give the right file."
        )
    if name == "mmproj":
        _check_media(text, section)
    else:
        _check_drafter(text, section)


def _check_media(text: Image, section: Image) -> None:
    width = _width(text)
    for prefix in ("clip.", "clip.vision.", "clip.audio."):
        made_for = section.get(f"{prefix}projector_type")
        if made_for is not None and not str(made_for).startswith(text.architecture):
            raise FormatError(
                f"the embedder is of kind {made_for!r} but the text model is a {text.architecture}; "
                "give the mmproj file of the same model."
            )
    for kind in ("vision", "audio"):
        out = section.get(f"clip.{kind}.projection_dim")
        if section.get(f"clip.has_{kind}_encoder", False) and out is not None and out != width:
            raise FormatError(
                f"the {kind} embedder ends in {out} numbers but the text model reads {width}; "
                "give the mmproj file of the same model."
            )


def _check_drafter(text: Image, section: Image) -> None:
    width = _width(text)
    out = section.get("gemma4-assistant.embedding_length_out")
    if out != width:
        raise FormatError(
            f"the drafter is made for a model of width {out} but the text model has {width}; "
            "give the assistant of the same model."
        )
    ours, theirs = text.get(_TOKENS), section.get(_TOKENS)
    if theirs is not None and ours is not None and _raw(ours) != _raw(theirs):
        raise FormatError("the drafter has another vocabulary; give the assistant of the same model.")
    n_ours, n_theirs = _n_rows(text), _n_rows(section)
    if n_ours and n_theirs and n_ours != n_theirs:
        raise FormatError(
            f"the drafter has {n_theirs} tokens but the text model {n_ours}; give the right assistant."
        )


def _width(text: Image) -> int:
    return int(text.get(f"{text.architecture}.embedding_length", 0))


def _n_rows(image: Image) -> int:
    return next((spec.shape[1] for spec in image.tensors if spec.name == "token_embd.weight"), 0)


def _raw(tokens: "list[str | bytes]") -> list[bytes]:
    return [token.encode() if isinstance(token, str) else bytes(token) for token in tokens]

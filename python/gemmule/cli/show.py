"""`gemmule show`: what a file says about itself, from its header."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gemmule.cli._common import context_size, find_model, verbosity_options

if TYPE_CHECKING:
    from gemmule import MemoryPlan
    from gemmule._inspect import Header

__all__ = ["show_command"]

_SHORT = 100
_TEMPLATE = "tokenizer.chat_template"


@click.command("show")
@click.argument("file", required=False, envvar="GEMMULE_MODEL")
@click.option("--tensors", is_flag=True, help="List the tensors: name, type, shape, bytes.")
@click.option("--meta", is_flag=True, help="List the metadata.")
@click.option("--key", help="One value of the metadata, in full.")
@click.option("--template", is_flag=True, help="The chat template.")
@click.option("--memory", is_flag=True, help="The memory needed for some context sizes.")
@click.option(
    "--ctx",
    "sizes",
    default="4k,32k,max",
    show_default=True,
    help="Context sizes for --memory; auto is the largest that fits here.",
)
@click.option(
    "--kv",
    "--kv-type",
    "kv_types",
    multiple=True,
    default=("f16",),
    metavar="TYPE",
    show_default="f16",
    help="Number format of the KV cache for --memory (repeatable).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@verbosity_options
def show_command(
    file: str | None,
    tensors: bool,
    meta: bool,
    key: str | None,
    template: bool,
    memory: bool,
    sizes: str,
    kv_types: tuple[str, ...],
    as_json: bool,
) -> None:
    """What is inside FILE, and does it fit in memory here. Reads the header only. FILE defaults to
    $GEMMULE_MODEL.
    """
    from gemmule._inspect import open_header

    wanted = _sizes(sizes) if memory else []
    opened = open_header(find_model(file))
    keys = opened.keys()
    if key is not None and key not in keys:
        raise click.UsageError(f"{opened.path} has no key {key!r}; --meta lists them")
    if template and _TEMPLATE not in keys:
        raise click.UsageError(f"{opened.path} has no chat template")
    out: dict[str, Any] = {}
    if not (tensors or meta or key or template or memory):
        out["info"] = _described(opened)
    if meta or key:
        out["meta"] = {name: _plain(opened, name, full=False) for name in (keys if meta else [])}
        if key:
            out["meta"][key] = _plain(opened, key, full=True)
    if template:
        out["template"] = opened.get(_TEMPLATE)
    if tensors:
        out["tensors"] = [
            {"name": name, "type": kind, "shape": list(shape), "n_bytes": size, "layout": layout}
            for name, kind, shape, _, size, layout in opened.tensors()
        ]
    if memory:
        plans = _plans(opened, wanted, kv_types)
        out["memory"] = [{**plan.to_dict(), "fits": plan.fits} for plan in plans]
    if as_json:
        click.echo(json.dumps(out, ensure_ascii=False))
        return
    if "info" in out:
        _print_info(out["info"])
    for name, value in out.get("meta", {}).items():
        click.echo(value if not meta and isinstance(value, str) else f"{name} = {value}")
    if template:
        click.echo(out["template"])
    for row in out.get("tensors", []):
        shape = " x ".join(str(n) for n in row["shape"])
        packed = "" if row["layout"] == "gguf" else "  packed"
        click.echo(f"{row['name']:<40} {row['type']:<6} {shape:<16} {row['n_bytes']}{packed}")
    if memory:
        _print_memory(plans)


def _described(file: "Header") -> dict[str, Any]:
    from gemmule._inspect import info_of
    from gemmule._roofline import speed_limit

    info = info_of(file)
    limit = speed_limit(file) if info.n_layers else None  # a media part has none
    return {
        **info.to_dict(),
        "tensor_types": _tensor_types(file),
        "n_tensors": len(file.tensors()),
        "n_packed": sum(layout != "gguf" for *_, layout in file.tensors()),
        "card": _card(file),
        "speed_limit": None if limit is None else asdict(limit),
    }


def _sizes(text: str) -> list[int | str]:
    try:
        return [context_size(size) for size in text.split(",")]
    except click.BadParameter as error:
        error.param_hint = "'--ctx'"
        raise


def _plans(file: "Header", sizes: list[int | str], kv_types: tuple[str, ...]) -> "list[MemoryPlan]":
    """A plan for each format and size. "auto" is the context that would be chosen, where there is one."""
    from gemmule._errors import NotEnoughMemoryError
    from gemmule._inspect import section_file
    from gemmule._plan import choose_plan, plan_for

    mmproj, drafter = section_file(file, "mmproj"), section_file(file, "drafter")
    plans = []
    for kv_type in kv_types:
        trained = plan_for(file, n_ctx=1, kv_type=kv_type).n_ctx_train
        for size in sizes:
            if size == "auto":
                try:
                    plans.append(choose_plan(file, "auto", kv_type=kv_type, mmproj=mmproj, drafter=drafter))
                    continue
                except NotEnoughMemoryError as error:
                    n_ctx = error.n_ctx or 1
            else:
                n_ctx = trained if size == "max" else int(size)
            plans.append(plan_for(file, n_ctx=n_ctx, kv_type=kv_type, mmproj=mmproj, drafter=drafter))
    return list(dict.fromkeys(plans))


def _print_info(info: dict[str, Any]) -> None:
    from gemmule._types import format_bytes, format_count

    types = ", ".join(f"{count} {kind}" for kind, count in info["tensor_types"].items())
    rows = {
        "name": info["name"],
        "architecture": info["architecture"],
        "parameters": format_count(info["n_params"]),
        "quantization": info["quantization"],
        "file size": format_bytes(info["file_size"]),
        "tensors": f"{info['n_tensors']} ({types})",
    }
    if info["n_packed"]:
        rows["layout"] = f"packed ({info['layout']}, {info['n_packed']} tensors); see gemmule unpack"
    if info["n_layers"]:  # a media part has none of these
        rows["context"] = f"up to {info['n_ctx_train']} tokens"
        rows["layers"] = f"{info['n_layers']} of width {info['d_model']}"
        rows["vocabulary"] = f"{info['n_vocab']} tokens"
    if limit := info["speed_limit"]:
        rows["speed"] = (
            f"at most {limit['tokens_per_second']:.1f} tokens per second here without drafting "
            f"(read bandwidth {limit['gb_per_second']:.0f} GB/s)"
        )
    if info["sections"]:
        rows["sections"] = ", ".join(info["sections"])
    card = info["card"]
    if "quality.rms_error" in card:
        importance = card.get("quality.imatrix")
        weighed = f", importance from {importance}" if importance else ""
        rows["quality"] = f"rounding error {card['quality.rms_error']:.2%} of the weights{weighed}"
    if "source.name" in card:
        rows["made from"] = f"{card['source.name']} ({card.get('source.dtype', '?')})"
    if "version" in card:
        rows["made by"] = f"gemmule {card['version']}"
    for label, value in rows.items():
        click.echo(f"{label:<14}{value}")


def _print_memory(plans: "list[MemoryPlan]") -> None:
    from gemmule._types import format_bytes

    columns = {
        "weights": [plan.weights for plan in plans],
        "KV cache": [plan.kv for plan in plans],
        "scratch": [plan.scratch for plan in plans],
        "runtime": [plan.runtime for plan in plans],
        "snapshots": [plan.snapshots for plan in plans],
        "media": [plan.media for plan in plans],
        "drafter": [plan.drafter for plan in plans],
        "total": [plan.total for plan in plans],
    }
    shown = {name: sizes for name, sizes in columns.items() if any(sizes)}
    width = max(len(plan.kv_type) for plan in plans)
    click.echo(f"{'context':>9}  {'KV':<{width}} {' '.join(f'{name:>10}' for name in shown)}   fits")
    for i, plan in enumerate(plans):
        cells = " ".join(f"{format_bytes(sizes[i]):>10}" for sizes in shown.values())
        above = ", above the trained size" if plan.n_ctx > plan.n_ctx_train else ""
        fits = "yes" if plan.fits else "no" if plan.total > plan.available else "barely"
        click.echo(f"{plan.n_ctx:>9}  {plan.kv_type:<{width}} {cells}   {fits}{above}")
    if plans[0].available:
        click.echo(f"{format_bytes(plans[0].available)} available")


def _card(file: "Header") -> dict[str, Any]:
    """What the converter wrote about its own work: the single values under gemmule.*, without checksums."""
    wanted = ("gemmule.version", "gemmule.layout", "gemmule.quality.", "gemmule.source.", "gemmule.convert.")
    keys = [key for key in file.keys() if key.startswith(wanted)]  # noqa: SIM118
    return {key.removeprefix("gemmule."): file.get(key) for key in keys if "array" not in file.type_of(key)}


def _tensor_types(file: "Header") -> dict[str, int]:
    return dict(Counter(kind for _, kind, *_ in file.tensors()).most_common())


def _plain(file: "Header", key: str, *, full: bool) -> Any:
    """A metadata value as JSON can hold it; long ones are named by their type unless asked for in full."""
    kind = file.type_of(key)
    if kind.startswith("array"):
        if not full:
            return kind
        value = file.get(key)
        return value if isinstance(value, list) else value.tolist()
    value = file.get(key)
    if isinstance(value, str) and not full and len(value) > _SHORT:
        return value[:_SHORT] + "..."
    return value

"""`gemmule doctor`: what this installation is, what the machine can do, and whether the engine computes
correctly.
"""

import json
import os
import platform
from typing import Any

import click

from gemmule.cli._common import CheckFailedError, verbosity_options

__all__ = ["doctor_command"]


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@verbosity_options
def doctor_command(as_json: bool) -> None:
    """Versions, instruction sets, cores, memory, demo weights, and a self check."""
    report = _facts()
    report["checks"] = {"codecs": _check_codecs(), "generation": _check_generation()}
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _print(report)
    failed = [name for name, result in report["checks"].items() if result.startswith("failed")]
    if failed:
        raise CheckFailedError(f"self check failed: {', '.join(failed)}")


def _facts() -> dict[str, Any]:
    import gemmule
    from gemmule._demo_weights import DEMO_FILE, demo_parts, models_dir
    from gemmule._inspect import build_facts
    from gemmule._memory import machine_memory

    build, cpu = build_facts()
    try:
        demo_parts()
        demo = True
    except gemmule.MissingExtraError:
        demo = False
    total, available = machine_memory()
    joined = models_dir() / DEMO_FILE
    return {
        "version": gemmule.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "build": build,
        "isa": {"selected": _selected_level(cpu), "levels": cpu["levels"], "features": cpu["features"]},
        "cores": {"physical": cpu["n_physical"], "logical": cpu["n_logical"]},
        "memory": {"total": total, "available": available},
        "demo_weights": demo,
        "demo_file": str(joined) if joined.is_file() else None,
    }


def _selected_level(cpu: dict[str, Any]) -> str:
    """The level a model would use here: $GEMMULE_CPU_ISA, else the best."""
    from gemmule import DeviceError

    wanted = os.environ.get("GEMMULE_CPU_ISA") or str(cpu["best"])
    offered = [level["name"] for level in cpu["levels"] if level["supported"]]
    if wanted not in offered:
        raise DeviceError(
            f"GEMMULE_CPU_ISA is {wanted!r}; this build and machine offer: {', '.join(offered)}"
        )
    return wanted


def _check_codecs() -> str:
    """Encodes and decodes a ramp in every block format; the error must stay within a step of that format."""
    import numpy as np

    from gemmule import dequantize, quantize

    ramp = np.linspace(-1, 1, 512, dtype=np.float32)
    limits = {
        "F32": 0.0,
        "F16": 1e-3,
        "BF16": 8e-3,
        "Q8_0": 0.01,
        "Q6_K": 0.05,
        "Q5_K": 0.08,
        "Q4_K": 0.15,
        "Q4_0": 0.2,
    }
    for kind, limit in limits.items():
        error = float(np.abs(dequantize(quantize(ramp, kind), kind, ramp.shape) - ramp).max())
        if not error <= limit:
            return f"failed: {kind} is off by {error:.3g}"
    return "passed"


def _check_generation() -> str:
    """The demo model must go on counting, and give the same bits with one thread and with all."""
    from gemmule import Error, Model
    from gemmule._demo_weights import demo_weights
    from gemmule._errors import MissingExtraError

    prompt = "One, two, three, four,"
    try:
        path = demo_weights()
        with Model(path, n_ctx=256) as model, Model(path, n_ctx=256, n_threads=1) as single:
            text = model.generate(prompt, max_tokens=8, temperature=0).text
            same = bool((model.logits(prompt) == single.logits(prompt)).all())
    except MissingExtraError:
        return 'not run: needs pip install "gemmule[demo]"'
    except (Error, OSError) as error:
        return f"failed: {error}"
    if "five" not in text:
        return f"failed: {prompt!r} was continued with {text!r}"
    return "passed" if same else "failed: the result depends on the number of threads"


def _print(report: dict[str, Any]) -> None:
    from gemmule._types import format_bytes

    isa, cores, memory = report["isa"], report["cores"], report["memory"]
    click.echo(
        f"gemmule       {report['version']} ({report['build']['build_type']}, {report['build']['compiler']})"
    )
    click.echo(f"python        {report['python']} on {report['system']}")
    click.echo(f"cores         {cores['physical']} physical, {cores['logical']} logical")
    click.echo(
        f"memory        {format_bytes(memory['total'])}, {format_bytes(memory['available'])} available"
    )
    for level in isa["levels"]:
        state = (
            "selected"
            if level["name"] == isa["selected"]
            else "supported"
            if level["supported"]
            else "not here"
        )
        click.echo(f"instructions  {level['name']:<12} {state:<10} {level['description']}")
    click.echo(f"demo weights  {'installed' if report['demo_weights'] else 'not installed'}")
    if report["demo_file"]:
        click.echo(f"demo file     {report['demo_file']}")
    for name, result in report["checks"].items():
        click.echo(f"check         {name:<12} {result}")

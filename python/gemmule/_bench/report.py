"""A report in one folder: rows of JSON by kind, CSV and SVG of every picture, tables in Markdown, and one
page of HTML that holds all of it and needs nothing else.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from gemmule._bench.advice import recommendation
from gemmule._bench.formats import check_comparable, jsonl_text, of_kind, speed_markdown
from gemmule._bench.memory import memory_markdown
from gemmule._bench.plots import write_plots
from gemmule._bench.quality_report import quality_markdown
from gemmule._bench.record import Row
from gemmule._cache import public_write

__all__ = ["write_report"]

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1rem 0;display:block;overflow-x:auto}
td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"""

# Where the ranking by divergence stops meaning anything, which a table alone does not say.
_CAVEAT = (
    "Below the divergence of about Q6_K, differences in mean KL no longer predict which file answers better; "
    "take the smallest of those."
)


def write_report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """All files of the report."""
    check_comparable(rows)
    written = []
    for kind in ("speed", "memory", "quality"):
        mine = of_kind(rows, kind)
        if mine:
            written.append(_write(folder / f"{kind}.jsonl", jsonl_text(mine)))
    pictures = write_plots(rows, folder)
    sections = _sections(rows)
    written.append(_write(folder / "report.md", _markdown(rows, sections, pictures)))
    written.append(_write(folder / "report.html", _page(rows, sections, pictures)))
    return [*written, *pictures]


def _write(path: Path, text: str) -> Path:
    with public_write(path) as out:
        out.write(text.encode())
    return path


def _sections(rows: Sequence[Row]) -> dict[str, str]:
    """Title -> tables."""
    quality = quality_markdown(rows)
    texts = {
        "Which to take": recommendation(rows) + "\n",
        "Speed": speed_markdown(rows),
        "Memory": memory_markdown(rows),
        "Quality": f"{quality}\n{_CAVEAT}\n" if quality and "mean KL" in quality else quality,
    }
    return {title: text for title, text in texts.items() if text.strip()}


def _facts(rows: Sequence[Row]) -> list[str]:
    """What the figures depend on, one sentence each."""
    ours = [row for row in rows if "gm_cores" in row]
    row = next(iter(of_kind(ours, "speed") or ours), None)
    if row is None:
        return [f"{rows[0].get('cpu_info')}, rows of llama-bench {rows[0].get('build_commit')}."]
    times = sorted(row["test_time"] for row in rows)
    facts = [
        f"{row['cpu_info']}, {row['gm_cores']} cores, {row['gm_memory'] / 1e9:.1f} GB, {row['gm_system']}.",
        f"gemmule {row['gm_version']} (build {row['build_commit']}), {row['gm_isa']}.",
        f"Flags: {row['gm_cpu_flags']}.",
        f"Measured from {times[0]} to {times[-1]}.",
    ]
    speed = of_kind(rows, "speed")
    rates = [rate for r in speed for rate in r.get("gm_yardstick", [])]
    if rates:
        memory, core = ([rate[i] for rate in rates] for i in (0, 1))
        facts.append(
            f"The host's yardstick ran at {min(memory):.1f} to {max(memory):.1f} GB/s of memory and "
            f"{min(core):.2f} to {max(core):.2f} GB/s of hashing in these runs."
        )
    if any(not r.get("gm_clean", True) for r in speed):
        facts.append("Rows with ! were measured while others used the machine.")
    quality = of_kind(rows, "quality")
    if quality and quality[0].get("gm_text_sha256"):
        facts.append(
            f"Texts {quality[0]['gm_text_sha256'][:16]}, windows of {quality[0]['gm_n_ctx']} tokens."
        )
    hashes = {r["model_filename"]: r["gm_sha256"] for r in rows if r.get("gm_sha256")}
    facts += [f"{name}: SHA-256 {digest[:16]}" for name, digest in hashes.items()]
    return facts


def _markdown(rows: Sequence[Row], sections: dict[str, str], pictures: Sequence[Path]) -> str:
    lines = ["# Benchmark", "", *(f"- {fact}" for fact in _facts(rows)), ""]
    for title, text in sections.items():
        lines += [f"## {title}", "", text]
    lines += [f"![{p.stem}]({p.name})" for p in pictures if p.suffix == ".svg"]
    return "\n".join(lines) + "\n"


def _page(rows: Sequence[Row], sections: dict[str, str], pictures: Sequence[Path]) -> str:
    body = ["<h1>Benchmark</h1><ul>", *(f"<li>{html.escape(fact)}</li>" for fact in _facts(rows)), "</ul>"]
    body += [_inline(path) for path in pictures if path.suffix == ".svg"]
    for title, text in sections.items():
        body += [f"<h2>{title}</h2>", _html_of(text)]
    data = json.dumps(list(rows), ensure_ascii=False).replace("</", "<\\/")
    body.append(f'<script type="application/json" id="rows">{data}</script>')
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>gemmule bench</title>'
    return f"{head}<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"


def _inline(path: Path) -> str:
    """The picture itself. Its ids are made its own, as several share the page."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{path.stem}-")
    return f"<figure>{svg}</figure>"


def _html_of(text: str) -> str:
    """The tables and sentences of our own Markdown."""
    parts, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        if lines:
            head, _, *body = lines
            rows = [f"<tr>{''.join(f'<th>{html.escape(c)}</th>' for c in head)}</tr>"]
            rows += [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}</tr>" for cells in body]
            parts.append(f"<table>{''.join(rows)}</table>")
            lines = []
        if line:
            parts.append(f"<p>{html.escape(line)}</p>")
    return "".join(parts)

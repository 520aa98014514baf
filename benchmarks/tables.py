"""Puts the newest results of every kind into README.md and the pages of docs/, between the marks that name them.

    python benchmarks/tables.py

A mark is `<!-- results: decode -->`; the table ends at `<!-- end -->`. A test holds the pages against the files.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from pathlib import Path
from typing import Any

from idefics.config.presets import preset
from idefics.plan.request import PRECISIONS, make_plan

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", DOCS / "performance.md", DOCS / "serving.md")
RESULTS = Path(__file__).parent / "results"
SUMMARY = {
    "preprocessing": "images to inputs",
    "vision": "images to latents, all layers",
    "decode": "four decoder layers and the head",
    "engine-2-layers": "two layers of tower and decoder",
    "engine": "embedded model",
    "large": "Idefics2-8B, whole",
}
MARKED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def newest(what: str) -> dict[str, Any]:
    """The result file of this kind with the latest date; of one day, that of the most threads."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{what}_*.json"))]
    return max(every, key=lambda document: (document["date"], document["threads"]))


def table(document: dict[str, Any]) -> str:
    """One row per case, and what it ran on."""
    rows = capacity(document) if document["what"] == "capacity" else comparison(document)
    if document["what"] == "large":
        rows += ["", peaks(document)]
    packages = ", ".join(f"{name} {document['packages'][name]}" for name in ("torch", "transformers"))
    rows += ["", f"{document['hardware']}, {document['threads']} thread(s), {packages}, {document['date']}."]
    return "\n".join(rows) + "\n"


def peaks(document: dict[str, Any]) -> str:
    """Of both sides' resident memory."""
    facts = document["cases"][0]["facts"]
    ours, theirs = (facts["peaks"][side] / 2**30 for side in ("ours", "theirs"))
    return f"Peak of resident memory: {ours:.2f} GiB, transformers {theirs:.2f} GiB."


def capacity(document: dict[str, Any]) -> list[str]:
    """Of a server: how fast it answers so many clients."""
    rows = [
        "| clients at once | answers per second | tokens per second | first token, median | 95 % | next token, median | 95 % |"
    ]
    rows.append("|---:" * 7 + "|")
    for facts in (case["facts"] for case in document["cases"]):
        seconds = [facts[name][which] for name in ("first token", "between tokens") for which in ("median", "95 %")]
        rates = [f"{facts[name]:.1f}" for name in ("answers per second", "tokens per second")]
        rows.append("| " + " | ".join([str(facts["clients"]), *rates, *map(duration, seconds)]) + " |")
    return rows


def summary() -> str:
    """Every comparison that has a target, and what has none of whole requests."""
    rows = ["| of what | work | ours | transformers | ratio | target |", "|---|---|---:|---:|---:|---:|"]
    for what, of_what in SUMMARY.items():
        whole = what in ("engine", "large")
        kept = [case for case in newest(what)["cases"] if (case["target"] is None) == whole and case["ratio"]]
        rows += [f"| {of_what} {row.rsplit('|', 2)[0]}|" for row in comparison({"cases": kept})[2:]]
    return "\n".join(rows) + "\n"


def room() -> str:
    """How many chats fit beside the weights: planned, not measured. A tenth of the memory is left to everything else."""
    rows = ["| memory | chats at once, whole photo | split in five |", "|---:|---:|---:|"]
    for memory in (24, 48, 80, 141):
        fits = [most_chats(memory * 2**30 * 9 // 10, split=split) for split in (False, True)]
        rows.append(f"| {memory} GiB | {fits[0]:,} | {fits[1]:,} |")
    return "\n".join(rows) + "\n"


def most_chats(free: int, *, split: bool) -> int:
    """The largest number of chats about a photo of 1920 x 1080, with answers of 512 tokens, that fits so many bytes."""
    config, sixteen_bits = preset("idefics2-8b"), [precision for precision in PRECISIONS if precision.dtype == "bfloat16"]

    def over(chats: int) -> bool:
        plan = make_plan(config, [(1920, 1080)], split=split, new_tokens=512, batch=chats, precisions=sixteen_bits)
        return plan.memory[0].total > free

    return bisect(range(1, 100_000), False, key=over)


def comparison(document: dict[str, Any]) -> list[str]:
    """With the reference."""
    rows = ["| work | ours | transformers | ratio | target | of the limit |", "|---|---:|---:|---:|---:|---:|"]
    for case in document["cases"]:
        ours, theirs = case["ours"]["median"], case["theirs"] and case["theirs"]["median"]
        cells = [
            case["name"],
            duration(ours),
            duration(theirs) if theirs else "",
            f"{case['ratio']:.2f}x" if case["ratio"] else "",
            f"{case['target']:g}x" if case["target"] else "",
            f"{100 * case['limit'] / ours:.0f} %" if case["limit"] else "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def filled(page: str) -> str:
    """The page with every marked table made anew."""

    def made(mark: re.Match[str]) -> str:
        made_here = {"room": room, "summary": summary}.get(mark[2])
        rows = made_here() if made_here is not None else table(newest(mark[2]))
        return f"{mark[1]}\n{rows}\n{mark[3]}"

    return MARKED.sub(made, page)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))

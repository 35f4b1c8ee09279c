#!/usr/bin/env python3
"""Charts of what the benches measured: each `target/bench/<name>.json` as `benches/charts/<name>.svg`.

    make bench-charts

A panel for each figure, its scale from 0 to its greatest value, its unit in its heading: less is better,
unless it says otherwise. What is ours is green. The colours follow the reader's: light or dark.
"""

import json
from xml.sax.saxutils import escape

import figures
import ground

CHARTS = ground.HERE / "charts"
# By bench: the title, and the panels as heading, key and format.
PANELS = {
    "snapshot": (
        "A table into S3, encrypted",
        [("CPU-seconds a GB of COPY", "cpu_s_per_gb", "{:.2f}"), ("Wall, s", "wall_s", "{:.1f}")],
    ),
    "stream": (
        "A backlog of changes, drained",
        [("CPU, µs a row", "us_per_row", "{:.2f}"), ("Durable after, s", "durable_s", "{:.1f}")],
    ),
    "upload": (
        "Upload alone, over TLS",
        [("CPU-seconds a GB sent", "cpu_s_per_gb", "{:.2f}"), ("Wall, s", "wall_s", "{:.1f}")],
    ),
    "journal": ("Append and fsync", [("MB/s, more is better", "mb_per_s", "{:.0f}")]),
    "latency": (
        "From COMMIT on",
        [
            ("Durable, ms, p50", "durable_p50_ms", "{:.1f}"),
            ("Durable, ms, p99", "durable_p99_ms", "{:.1f}"),
            ("In the signed ledger, s, p95", "proven_p95_s", "{:.2f}"),
        ],
    ),
    "idle": (
        "100 tables, and nothing happens",
        [("CPU, % of a core", "cpu_percent", "{:.2f}"), ("Resident, MiB", "resident_mib", "{:.0f}")],
    ),
    "guest": (
        "pgbench beside a snapshot",
        [("p50 of a transaction, ms", "p50_ms", "{:.2f}"), ("p95, ms", "p95_ms", "{:.2f}"), ("p99, ms", "p99_ms", "{:.2f}")],
    ),
}
# Figures of one line, each a bar of its own: by bench, the set, its heading, and label, key by bar.
PARTS = {
    "idle": (
        "ready",
        "Ready after, s",
        [("first start", "first_s"), ("nothing to send", "empty_s"), ("full journal", "full_s")],
        "{:.2f}",
    )
}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.faint { fill: #57606a; font-size: 11px } .own { fill: #1a7f64 } .peer { fill: #9aa4ae } .page { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .faint { fill: #9da7b1 } .own { fill: #3fb68b } .peer { fill: #6e7781 } .page { fill: #0d1117 }
}
"""
WIDTH, EDGE, VALUE, SIGN = 680, 16, 70, 6.4
BAR, PITCH, HEAD, GAP = 16, 22, 30, 6


def bars_of(results, key):
    """Set, label, value and whether it is ours, of each line of each set that has the figure."""
    found = []
    for name, result in results.items():
        for line, figure in result.get("median", {figures.OWN: result}).items():
            if key in figure:
                alone = len(results) == 1 and "median" in result
                label = line if alone else f"{name}: {line}" if "median" in result else name
                found.append((name, label, figure[key], line == figures.OWN))
    return found


def panels_of(name, results):
    """Heading, format and bars of each."""
    _, wanted = PANELS[name]
    found = [(heading, form, bars_of(results, key)) for heading, key, form in wanted]
    if name in PARTS:
        part, heading, keys, form = PARTS[name]
        found.append((heading, form, [(part, label, results[part][key], True) for label, key in keys]))
    return [panel for panel in found if panel[2]]


def said(x, y, text, kind="", more=""):
    return f'<text x="{x}" y="{y}" class="{kind}"{more}>{escape(text)}</text>'


def chart(title, notes, panels):
    """The SVG."""
    labels = [label for _, _, bars in panels for _, label, _, _ in bars]
    left = EDGE + 8 + max(len(label) for label in labels) * SIGN
    y, lines = EDGE + 14, []
    lines.append(said(EDGE, y, title, "title"))
    for heading, form, bars in panels:
        y += HEAD
        lines.append(said(EDGE, y, heading, "faint"))
        y += 8
        most = max(value for _, _, value, _ in bars) or 1
        before = bars[0][0]
        for name, label, value, own in bars:
            # Sets of several lines stand apart.
            y += GAP if name != before and label != name else 0
            before = name
            long = max(1, (WIDTH - left - VALUE - EDGE) * value / most)
            place = f'x="{left:.1f}" y="{y}" width="{long:.1f}" height="{BAR}" rx="2"'
            lines.append(said(f"{left - 8:.1f}", y + 12, label, "", ' text-anchor="end"'))
            lines.append(f'<rect {place} class="{"own" if own else "peer"}"/>')
            lines.append(said(f"{left + long + 6:.1f}", y + 12, form.format(value)))
            y += PITCH
    for note in notes:
        y += 18
        lines.append(said(EDGE, y, note, "faint"))
    height = y + EDGE
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    page = f'<rect width="{WIDTH}" height="{height}" class="page"/>'
    named = f' role="img"><title>{escape(title)}</title>'
    return "\n".join([begin + named, f"<style>{STYLE}</style>", page, *lines, "</svg>\n"])


def notes_of(document):
    rounds = {result["rounds"] for result in document["results"].values() if "rounds" in result}
    server = f", PostgreSQL {document['postgresql']}" if document["postgresql"] else ""
    first = f"{document['date']}, {document['machine']}, load {document['load']}"
    second = f"{document['lakehead']}{server}, scale {document['scale']:g}"
    return [first, f"{second}, medians of {max(rounds)} rounds" if rounds else second]


def main():
    CHARTS.mkdir(exist_ok=True)
    for path in sorted(figures.RESULTS.glob("*.json")):
        if path.stem not in PANELS:
            continue
        document = json.loads(path.read_text())
        panels = panels_of(path.stem, document["results"])
        (CHARTS / f"{path.stem}.svg").write_text(chart(PANELS[path.stem][0], notes_of(document), panels))
        print(f"benches/charts/{path.stem}.svg")


if __name__ == "__main__":
    main()

"""What the rounds gave: medians, how far they lie apart, ratios within a round, JSON, Markdown."""

import datetime
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import ground

RESULTS = Path(__file__).resolve().parent.parent / "target/bench"
STABLE = 0.10
OWN, ROUNDS = "lakehead", int(os.environ.get("TURNS", "3"))
ROUNDS_MAX = 2 * ROUNDS


def alternate(lines, figure="cpu_s"):
    """Runs every line in turn, round after round, until the last rounds of each agree in `figure`."""
    runs = {name: [] for name in lines}
    for number in range(1, ROUNDS_MAX + 1):
        for name, line in lines.items():
            os.sync()
            run = line(number)
            runs[name].append(run)
            ground.say(f"round {number} {name}: {shown(run)}")
        if number >= ROUNDS and all(spread(done, figure) <= STABLE for done in runs.values()):
            break
    return runs


def spread(runs, figure):
    """How far the last rounds lie apart, in parts of their median. A figure in a figure: a pair of keys."""
    part, key = figure if isinstance(figure, tuple) else (None, figure)
    last = [(run[part] if part else run)[key] for run in runs[-ROUNDS:]]
    return (max(last) - min(last)) / statistics.median(last)


def summary(runs, ratios, figure="cpu_s"):
    """Medians of all rounds by line, the spread of the last, and our ratio to each peer, round by round."""
    lines = {}
    for name, done in runs.items():
        lines[name] = {key: round(statistics.median(run[key] for run in done), 4) for key in done[0]}
        lines[name]["spread"] = round(spread(done, figure), 3)
    against = {}
    for peer in runs:
        if peer == OWN:
            continue
        against[peer] = {
            key: span([ours[key] / theirs[key] for ours, theirs in zip(runs[OWN], runs[peer])])
            for key in ratios
        }
    return {"rounds": len(runs[OWN]), "figure": figure, "median": lines, "ratio": against, "runs": runs}


def span(values):
    named = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


def shown(value):
    if isinstance(value, dict):
        return ", ".join(f"{key} ({shown(one)})" if isinstance(one, dict) else f"{key} {shown(one)}"
                         for key, one in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def table(title, rows, columns):
    """The lines of a table. `columns`: heading, key and format by column."""
    lines = [f"### {title}", "", "| | " + " | ".join(head for head, _, _ in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        cells = (form.format(row[key]) if key in row else "" for _, key, form in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def markdown(title, result, columns):
    """A table of the medians, and our ratios below it."""
    lines = table(title, result["median"], columns)
    for peer, ratios in result["ratio"].items():
        said = (
            f"{key} {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
            for key, ratio in ratios.items()
        )
        lines.append(f"{OWN} / {peer}, within a round: " + ", ".join(said) + ".")
    spreads = (f"{name} {median['spread']:.0%}" for name, median in result["median"].items())
    lines.append(f"{result['rounds']} rounds; the last {ROUNDS} differ in {result['figure']} by: {', '.join(spreads)}.")
    return "\n".join(lines) + "\n"


def percentile(values, part):
    """The least value that so many parts of all do not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def keep(name, results, cluster, scale):
    """Writes `target/bench/<name>.json`. No path, host or port stands in it. The load is that of the machine.
    `cluster`: None where no database has part in it."""
    commit = said(["git", "-C", str(ground.HERE), "rev-parse", "--short", "HEAD"])
    document = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "lakehead": f"{said([str(ground.BINARY), 'version'])} ({commit})",
        "postgresql": cluster and cluster.version,
        "sslmode": cluster and ground.SSLMODE,
        "scale": scale,
        "load": round(os.getloadavg()[1], 1),
        "results": results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    # With TLS they are not those that the charts are made of.
    is_plain = not cluster or ground.SSLMODE == "disable"
    path = RESULTS / (f"{name}.json" if is_plain else f"{name}-tls.json")
    path.write_text(json.dumps(document, indent=1) + "\n")
    server = f", PostgreSQL {cluster.version}{'' if is_plain else ' over TLS'}" if cluster else ""
    print(f"{document['date']}, {document['machine']}, load {document['load']}, {document['lakehead']}{server}\n")


def machine():
    with open("/proc/cpuinfo") as file:
        model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"{os.cpu_count()} shared cores, {model}"


def said(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip()


def demand(holds, what):
    """A figure of a run that did not do its work is no figure."""
    if not holds:
        sys.exit(f"the run does not count: {what}")

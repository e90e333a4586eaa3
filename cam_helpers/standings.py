"""The table of the league: its rows, its file, and how it is shown. Knows only numbers."""

from collections.abc import Sequence
import csv
import io
from pathlib import Path

from cam_helpers import data, methods, metrics
from cam_helpers.writing import whole
import numpy as np

FILE = "league.csv"
ANOTHER = "another image's Grad-CAM"
CONTROLS = (*methods.CONTROLS, ANOTHER)
ENOUGH = 20  # images, for an interval to say who is better
BETTER = {  # metric to whether high or low is good
    "pointing": "high",
    "pointing at the decoy": "low",
    "energy inside": "high",
    "grid pointing": "high",
    "deletion": "low",
    "deletion less another's": "low",
    "deletion, blur": "low",
    "insertion": "high",
    "insertion, blur": "high",
    "average drop": "low",
    "average increase": "high",
    "empty": "low",
    "seconds": "low",
}
COLUMNS = (
    "track",
    "metric",
    "better",
    "method",
    "kind",
    "images",
    "mean",
    "low",
    "high",
    "beats",
    "as_good_as_best",
)
SHOWN = (  # columns of the README's table: heading, track, metric
    ("mark hit", "marks", "pointing"),
    ("grid pointing", "mosaics", "grid pointing"),
    ("garments: deletion ↓", "Fashion-MNIST", "deletion"),
    ("insertion ↑", "Fashion-MNIST", "insertion"),
    ("photos: deletion ↓", "photos", "deletion"),
    ("insertion ↑", "photos", "insertion"),
    ("ms a map", "Fashion-MNIST", "seconds"),
)
START, END = "<!-- league -->", "<!-- end of league -->"


def rows_of(track: str, scores: dict[str, dict[str, np.ndarray]]) -> list[dict[str, str]]:
    """Return a row for each metric and method: mean, interval, controls beaten, tie with the best.

    ``scores`` is method to metric to the value of each image, (n,). Who beats whom is said from
    ``ENOUGH`` images on.
    """
    rows = []
    for metric in next(iter(scores.values())):
        values = {name: found[metric] for name, found in scores.items()}
        sign = 1 if BETTER[metric] == "high" else -1
        best = max(values, key=lambda name: sign * values[name].mean())
        for name, each in values.items():
            mean, low, high = metrics.mean_and_interval(each)
            row = dict.fromkeys(COLUMNS, "") | {
                "track": track,
                "metric": metric,
                "better": BETTER[metric],
                "method": name,
                "kind": "control" if name in CONTROLS else "method",
                "images": str(len(each)),
                "mean": f"{mean:.2g}" if metric == "seconds" else f"{mean:.4f}",
            }
            if metric != "seconds":
                row["low"], row["high"] = f"{low:.4f}", f"{high:.4f}"
            if metric != "seconds" and len(each) >= ENOUGH:
                gains = {other: sign * (each - values[other]) for other in values}
                row["beats"] = "; ".join(
                    other
                    for other in CONTROLS
                    if other in gains and metrics.mean_and_interval(gains[other])[1] > 0
                )
                behind = metrics.mean_and_interval(gains[best])[2] < 0
                row["as_good_as_best"] = "no" if behind else "yes"
            rows.append(row)
    return rows


def write(rows: list[dict[str, str]], path: Path) -> None:
    """Write rows as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    with whole(path) as file:
        file.write(text.getvalue().encode())


def read(path: Path | None = None) -> list[dict[str, str]]:
    """Return the rows of a table, by default the committed one."""
    with open(path or data.folder() / FILE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def means(rows: list[dict[str, str]], track: str, metric: str) -> dict[str, float]:
    """Return method to mean, in the order of the table."""
    chosen = (row for row in rows if (row["track"], row["metric"]) == (track, metric))
    return {row["method"]: float(row["mean"]) for row in chosen}


def text(rows: list[dict[str, str]], track: str, names: Sequence[str]) -> str:
    """Return metrics of a track side by side: mean, interval, * for what beats every control."""
    of = {(row["metric"], row["method"]): row for row in rows if row["track"] == track}
    entries = list(dict.fromkeys(method for _, method in of))
    width = max(map(len, entries))
    lines = [" " * width + "".join(f"{name:>22}" for name in names)]
    for method in entries:
        line = f"{method:{width}}"
        for row in (of[name, method] for name in names):
            interval = row["low"] and f"{float(row['low']):.2f}…{float(row['high']):.2f}"
            line += f"{float(row['mean']):9.2f} {interval:>11}{'*' if beats_all(row) else ' '}"
        lines.append(line)
    return "\n".join(lines)


def beats_all(row: dict[str, str]) -> bool:
    """Return whether a row's method is better than every control of its track, surely so."""
    beaten, expected = set(row["beats"].split("; ")), set(CONTROLS)
    if row["track"] == "mosaics":
        expected.remove(ANOTHER)
    return expected <= beaten


def shown(rows: list[dict[str, str]]) -> str:
    """Return the table of the README, in Markdown: what is bold beats every control."""
    lines = [
        "| | " + " | ".join(heading for heading, _, _ in SHOWN) + " |",
        "| --- |" + " ---: |" * len(SHOWN),
    ]
    of = {(row["track"], row["metric"], row["method"]): row for row in rows}
    for method in (*methods.METHODS, *CONTROLS):
        cells = [_cell(of.get((track, metric, method))) for _, track, metric in SHOWN]
        name = f"*{method}*" if method in CONTROLS else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row):
    if row is None:
        return ""
    mean = float(row["mean"])
    if row["metric"] == "seconds":
        return f"{1000 * mean:.0f}" if mean >= 0.01 else f"{1000 * mean:.2g}"
    text = f"{mean:.2f}"
    return f"**{text}**" if beats_all(row) else text


def into_readme(rows: list[dict[str, str]], path: Path) -> None:
    """Write the table into a README, between the two comments that are there for it.

    Raises
    ------
    ValueError
        If they are not there; the file stays as it is.
    """
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"expected {START} and then {END}, received {path} without: add them.")
    with whole(path) as file:
        file.write(f"{before}{start}\n{shown(rows)}\n{end}{after}".encode())

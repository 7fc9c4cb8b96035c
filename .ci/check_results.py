"""What the whole demo and the whole real-data benchmark must show; run by `.ci/run --full`.

check_results.py demo DIR | real DIR REFERENCE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dynbn_lightning.reporting import methods_of, read_results


def check(what: str, holds: bool) -> None:
    print(("ok: " if holds else "NOT SO: ") + what)
    if not holds:
        raise SystemExit(1)


def check_demo(results: dict[str, Any]) -> None:
    methods = methods_of(results)
    source, dynamic = methods["source"], methods["dynamic_bn/calibrated"]
    lost = source["clean"]["accuracy"] - source["mean"]["accuracy"]
    won = dynamic["mean"]["accuracy"] - source["mean"]["accuracy"]
    check(f"corruption costs the source {100 * lost:.1f} points, at least 20", lost >= 0.2)
    check(f"dynamic BN wins {100 * won:.1f} of them back, at least half", won >= lost / 2)
    clean = 100 * (dynamic["clean"]["accuracy"] - source["clean"]["accuracy"])
    check(f"on clean images it is {clean:+.1f} points from the source, at most 0.5 below", clean >= -0.5)


def check_real(results: dict[str, Any], reference: Path) -> None:
    published = json.loads((reference / "cifar_c_statistics.json").read_text())
    mixed = methods_of(results, "mixed")
    source, calibrated = mixed["source"], mixed["dynamic_bn/calibrated"]
    expected = sum(published[cell]["resnet20_accuracy"] for cell in source["cells"]) / len(source["cells"])
    check(f"15 corruptions at 5 severities, {len(source['cells'])} cells", len(source["cells"]) == 75)
    check(
        f"source {100 * source['mean']['accuracy']:.1f} %, published corruptions {100 * expected:.1f} %, within 1.5 "
        "points",
        abs(source["mean"]["accuracy"] - expected) <= 0.015,
    )
    stream = methods_of(results, "sequential")["dynamic_bn/stream"]
    extra = methods_of(results, "extra")
    for what, measured, least in (
        ("calibrated, mean over the 75 cells", calibrated["mean"]["accuracy"], 0.79),
        ("calibrated, severity 5", calibrated["severity_5"], 0.715),
        ("calibrated, clean", calibrated["clean"]["accuracy"], 0.91),
        ("refined rows, mean over the 75 cells", mixed["dynamic_bn/refined"]["mean"]["accuracy"], 0.83),
        ("evidence of the stream, mean over the 75 cells", stream["mean"]["accuracy"], 0.795),
        (
            "corruptions never seen",
            extra["dynamic_bn/calibrated"]["mean"]["accuracy"],
            extra["source"]["mean"]["accuracy"],
        ),
    ):
        check(f"{what}: {100 * measured:.1f} %, at least {100 * least:.1f}", measured >= least)
    ((cell, bounds),) = calibrated["against_source"]["lowest_upper_bound"].items()
    check(
        f"no cell's interval is wholly below -2 points; the lowest ends at {100 * bounds[2]:.1f}, {cell}",
        bounds[2] >= -0.02,
    )


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    found = read_results(Path(folder))
    if kind == "demo":
        check_demo(found)
    else:
        check_real(found, Path(rest[0]))

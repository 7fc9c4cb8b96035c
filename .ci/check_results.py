"""What the whole demo and the whole real-data benchmark must show; run by `.ci/run --full`.

check_results.py demo DIR | real DIR REFERENCE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dynbn_lightning.reporting import read_results


def check(what: str, holds: bool) -> None:
    print(("ok: " if holds else "NOT SO: ") + what)
    if not holds:
        raise SystemExit(1)


def check_demo(results: dict[str, Any]) -> None:
    methods = results["methods"]
    source, dynamic = methods["source"], methods["dynamic_bn/soft"]
    lost = source["clean"] - source["mean"]
    won = dynamic["mean"] - source["mean"]
    check(f"corruption costs the source {100 * lost:.1f} points, at least 20", lost >= 0.2)
    check(f"dynamic BN wins {100 * won:.1f} of them back, at least a third", won >= lost / 3)


def check_real(results: dict[str, Any], reference: Path) -> None:
    published = json.loads((reference / "cifar_c_statistics.json").read_text())
    cells = results["streams"]["mixed"]["methods"]["source"]["cells"]
    expected = sum(published[cell]["resnet20_accuracy"] for cell in cells) / len(cells)
    measured = results["streams"]["mixed"]["methods"]["source"]["mean"]
    check(f"15 corruptions at 5 severities, {len(cells)} cells", len(cells) == 75)
    check(
        f"source {100 * measured:.1f} %, published corruptions {100 * expected:.1f} %, within 1.5 points",
        abs(measured - expected) <= 0.015,
    )
    hardest = results["streams"]["mixed/severity_5"]["methods"]
    soft, batch = hardest["dynamic_bn/soft"]["mean"], hardest["batch_stats"]["mean"]
    check(f"dynamic BN soft, mixed stream, severity 5: {100 * soft:.1f} %, at least 66", soft >= 0.66)
    check(f"{100 * (soft - batch):.1f} points over BN-1 there, at least 10", soft >= batch + 0.1)


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    found = read_results(Path(folder))
    if kind == "demo":
        check_demo(found)
    else:
        check_real(found, Path(rest[0]))

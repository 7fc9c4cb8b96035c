"""What the speed benchmark of the corruptions makes of its times: ratios, means and tables."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import geometric_mean
from typing import Any

OURS = "ours"
Times = Mapping[str, float | None]


def ratios(ours: Times, peer: Times) -> dict[str, float]:
    """The peer's time over ours for each corruption that both have a time for: above 1, ours is faster."""
    pairs = {name: (time, peer.get(name)) for name, time in ours.items()}
    return {name: theirs / time for name, (time, theirs) in pairs.items() if time is not None and theirs is not None}


def summary(ours: Times, peer: Times) -> dict[str, Any]:
    """The means of the ratios over the corruptions that both have a time for, and which corruptions those leave out."""
    each = ratios(ours, peer)
    sums = [sum(times[name] or 0.0 for name in each) for times in (ours, peer)]
    return {
        "ratios": each,
        "geometric_mean": geometric_mean(each.values()) if each else None,
        "ratio_of_sums": sums[1] / sums[0] if each else None,
        "ours_faster": sum(ratio > 1 for ratio in each.values()),
        "left_out": [name for name in ours if name not in each],
    }


def size_table(size: Mapping[str, Any]) -> list[str]:
    """The markdown table of one image size."""
    corruptions, peers = size["corruptions"], [name for name in size["memory"] if name != OURS]
    times = {who: {name: row[who]["ms_per_image"] for name, row in corruptions.items()} for who in size["memory"]}
    headings = ["corruption", "ours, ms/image", *(text for peer in peers for text in (f"{peer}, ms/image", "ratio"))]
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    each = {peer: ratios(times[OURS], times[peer]) for peer in peers}
    for name in corruptions:
        cells = [text for peer in peers for text in (_time(times[peer][name]), _ratio(each[peer].get(name)))]
        rows.append([name, _time(times[OURS][name]), *cells])
    summaries = size["summary"]
    for label, key in (("geometric mean of the ratios", "geometric_mean"), ("ratio of the sums", "ratio_of_sums")):
        if peers:
            rows.append([label, "", *(text for peer in peers for text in ("", _ratio(summaries[peer][key])))])
    for label, key in (("peak memory, MiB", "peak_mib"), ("of that after imports, MiB", "increase_mib")):
        memory = [f"{size['memory'][who][key]:.0f}" for who in size["memory"]]
        rows.append([label, memory[0], *(text for figure in memory[1:] for text in (figure, ""))])
    if gpu := size["memory"][OURS].get("gpu_peak_mib"):
        rows.append(["peak memory of the GPU, MiB", f"{gpu:.0f}", *[""] * 2 * len(peers)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for peer in peers:
        if left_out := summaries[peer]["left_out"]:
            reasons = (corruptions[name][peer].get("error") or corruptions[name][OURS]["error"] for name in left_out)
            failures = (f"{name} ({reason})" for name, reason in zip(left_out, reasons, strict=True))
            lines += ["", f"Not in the means of {peer}: {'; '.join(failures)}."]
    return lines


def markdown(results: Mapping[str, Any]) -> str:
    """Every table, with what is compared and on what machine."""
    protocol, machine, severities = results["protocol"], results["machine"], results["protocol"]["severities"]
    peers, gpu = [name for name in results["versions"] if name != OURS], machine.get("gpu")
    hardware = f"{machine['cpu']}, {machine['cores']} cores" + (f", {gpu}" if gpu else "")
    where = f"on the GPU, where the images are already and the results stay, {gpu}" if gpu else "on the CPU"
    over = f"{'severities' if severities[1:] else 'severity'} {', '.join(map(str, severities))}"
    ours = f"one process, threads: {machine['cores']}, whole batches, {where}"
    lines = [
        f"{results['date']}, {hardware}, load average before the run {machine['load_before']}. "
        f"{protocol['images'].capitalize()}, uint8 in and out; mean over {over}; "
        f"best of up to {protocol['repetitions']} calls. "
        "Ratio: the peer's time / ours; above 1, ours is faster.",
        "",
        f"- ours: {ours}; {_versions(results['versions'][OURS])}",
    ]
    theirs = f"processes of one thread that share the batch: {machine['cores']}, on the CPU"
    lines += [f"- {peer}: {theirs}; {_versions(results['versions'][peer])}" for peer in peers]
    for size in results["sizes"].values():
        constants = f"ours with the constants of `{size['preset']}`"
        if peers:
            constants += ", the peers with ImageNet's, the only ones they have"
        heading = f"### {size['images']} images of {size['pixels']} px: {constants}"
        lines += ["", heading, "", *size_table(size)]
    if peers:
        lines += ["", "Memory is the sum over a contestant's processes; libraries that they share count once in each."]
    return "\n".join(lines) + "\n"


def _time(milliseconds: float | None) -> str:
    return "fails" if milliseconds is None else _figure(milliseconds)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else _figure(ratio)


def _figure(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())

"""Table of what works on which ComfyUI: the tests of each capability on each host.

    python benchmarks/hosts.py --comfyui PATH [--comfyui PATH ...] [--only CAPABILITY ...] [--minutes N]

COMFYUI_PYTHON is the interpreter of all hosts, IPADAPTER_PLUS the folder of ComfyUI_IPAdapter_plus. Writes
docs/hosts.json after every cell and docs/hosts.md from it. A cell that was measured on the present code is
kept, so the command may be stopped and given again; quick cells come first. Without --comfyui it only writes
docs/hosts.md. Exits with 1 if a test of these cells failed.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGINT, default_int_handler, signal
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS, RESULTS, PAGE = ROOT / "tests" / "comfyui", ROOT / "docs" / "hosts.json", ROOT / "docs" / "hosts.md"
TESTED = ("0.33.0", "0.26.0", "0.8.0", "0.3.64", "0.3.52")
"""The releases of ComfyUI that the table is made for, newest first. The last one is the oldest that the pack
is offered for. README.md, docs/get-started.md and pyproject.toml say the same; tests/test_hosts.py checks it.
"""
CAPABILITIES = {
    "registration": ("registration", "copied_lists", "folder_names"),
    "help and languages": ("help_served",),
    "installation": ("registry_zip",),
    "embedded model": ("embedded", "workflow_embedded"),
    "migration": ("migrate_run", "migrate_page"),
    "sampling": ("host_sampling", "server", "core_nodes"),
    "LoRA loader": ("lora_loader", "lora_server", "lora_base_models", "lora_bypass", "splus_host"),
    "LoRAs of others": ("lora_makers", "lora_corpus"),
    "Compare": ("compare_grid",),
    "data sets": ("dataset_latents",),
    "dynamic VRAM": ("dynamic_vram", "dynamic_served"),
    "quantized weights": ("quantized",),
    "web page": ("web_page",),
    "distillation": ("distill_node", "distill_served", "gradients", "train_command"),
    "every class of models": ("zoo",),
    "IP-Adapter": ("ip_adapter",),
    "parity with diffusers": ("parity",),
    "workflows": ("workflow_runs",),
    "full size": ("full_size", "full_size_distill"),
    "figures of the demo": ("bridge_figures",),
}
"""Rows of the table, quick ones first: test_NAME.py of tests/comfyui. Files of no row are in OTHERS."""
OTHERS = "others"
DOCUMENTS = (":!docs", ":!README.md", ":!CHANGELOG.md")
"""Paths, as git takes them, that may change without a cell being measured anew."""
HEADING = "\n## Results\n"
GRACE = 120
"""Seconds that pytest has to close a host."""


class Cell(NamedTuple):
    """Counts of a pytest run, and its lines on the tests that failed or were skipped."""

    commit: str
    passed: int
    failed: int
    skipped: int
    seconds: int
    faults: list[str]

    def __str__(self) -> str:
        parts = [f"{self.passed}"]
        parts += [f"{self.failed} failed"] * bool(self.failed)
        parts += [f"{self.skipped} skipped"] * bool(self.skipped)
        return ", ".join(parts)


Results = dict[str, dict[str, Cell]]
"""Cells by version of the host, then by capability."""


def version_of(host: Path) -> str:
    """Read the release of a ComfyUI checkout, such as 0.33.0."""
    text = (host / "comfyui_version.py").read_text("utf-8")
    return re.findall(r'__version__ = "(.+)"', text)[0]


def files_of(capability: str) -> list[Path]:
    """List the test files of a row. KeyError for a row that there is not."""
    if capability != OTHERS:
        return [TESTS / f"test_{name}.py" for name in CAPABILITIES[capability]]
    known = {path for row in CAPABILITIES for path in files_of(row)}
    return sorted(set(TESTS.glob("test_*.py")) - known)


def git(*arguments: str) -> str:
    """Run git in the repository and give what it says."""
    return subprocess.run(
        ["git", *arguments, "--", ".", *DOCUMENTS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit() -> str:
    """Name the last commit that changed more than documents; "" where files differ from it."""
    return "" if git("status", "--porcelain") else git("log", "-1", "--format=%h")


def counted(said: str, tested: str, seconds: float) -> Cell:
    """Read the last lines of `pytest -rfEs --tb=no`: its counts, what failed, and why tests were skipped."""
    counts: dict[str, int] = dict.fromkeys(("passed", "failed", "skipped", "error"), 0)
    for line in said.splitlines():
        if re.fullmatch(r"=*\s*(\d+ \w+, )*\d+ \w+ in [\d.]+s.*", line):
            found = re.findall(r"(\d+) (\w+?)s?\b", line)
            counts.update({name: int(number) for number, name in found if name in counts})
    faults = re.findall(r"^((?:FAILED|ERROR|SKIPPED) .*)$", said, re.MULTILINE)
    failed = counts["failed"] + counts["error"]
    return Cell(tested, counts["passed"], failed, counts["skipped"], round(seconds), faults)


def measure(host: Path, files: Sequence[Path], tested: str, minutes: float) -> Cell:
    """Run test files on a host. After `minutes`, pytest is asked to end, which closes the host it started."""
    options = ["-q", "-rfEs", "--tb=no", "-p", "no:cacheprovider", f"--comfyui={host.resolve()}"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    begin, ended = time.monotonic(), ""
    # Begun in the background (`&`), a process ignores interrupts and so would all that it starts; some tests
    # send them.
    signal(SIGINT, default_int_handler)
    wide = {**os.environ, "COLUMNS": "200"}  # no message is cut off
    with subprocess.Popen(command, cwd=ROOT, env=wide, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate(timeout=minutes * 60)
        except subprocess.TimeoutExpired:
            ended = f"not done after {minutes:g} minutes"
            process.send_signal(SIGINT)
            try:
                said, _ = process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
    if not ended and process.returncode not in (0, 1):
        ended = f"pytest ended with {process.returncode}"
    cell = counted(said, tested, time.monotonic() - begin)
    faults = [fault.replace(f"{ROOT}{os.sep}", "") for fault in cell.faults] + [ended] * bool(ended)
    return cell._replace(failed=cell.failed + bool(ended), faults=faults)


def load() -> Results:
    """Read what was measured."""
    if not RESULTS.is_file():
        return {}
    stored = json.loads(RESULTS.read_text("utf-8"))
    return {host: {row: Cell(**cell) for row, cell in rows.items()} for host, rows in stored.items()}


def save(results: Results) -> None:
    """Write what was measured, and the page from it."""
    stored = {host: {row: cell._asdict() for row, cell in rows.items()} for host, rows in results.items()}
    for path, text in {
        RESULTS: json.dumps(stored, indent=1) + "\n",
        PAGE: PAGE.read_text("utf-8").partition(HEADING)[0] + HEADING + written(results),
    }.items():
        path.write_text(text, "utf-8", newline="\n")


def written(results: Results) -> str:
    """Give the table as Markdown: rows are capabilities, columns the tested hosts; then what failed."""
    lines = [
        "",
        "Tests that passed, of each capability on each ComfyUI; `-`: not measured.",
        "",
        f"| | {' | '.join(TESTED)} |",
        f"| --- |{' ---: |' * len(TESTED)}",
    ]
    shown = [host for host in TESTED if host in results]
    for row in (*CAPABILITIES, OTHERS):
        cells = [results.get(host, {}).get(row) for host in TESTED]
        if any(cells) or row != OTHERS:
            lines.append(f"| {row} | {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    faults = [
        f"- {host}, {row}: {fault}"
        for host in shown
        for row, cell in results[host].items()
        for fault in cell.faults
    ]
    commits = sorted({cell.commit or "uncommitted files" for h in shown for cell in results[h].values()})
    lines += ["", f"Measured on {', '.join(commits) or 'nothing yet'}."]
    lines += ["", "Failed or skipped:", "", *faults] if faults else []
    return "\n".join(lines) + "\n"


def wanted(hosts: Sequence[Path], only: Sequence[str], done: Results, now: str) -> Iterator[tuple[Path, str]]:
    """Yield the cells that the present code has not: row by row, so that quick ones come first."""
    for row in only or (*CAPABILITIES, OTHERS):
        for host in hosts:
            cell = done.get(version_of(host), {}).get(row)
            if files_of(row) and (cell is None or not now or cell.commit != now):
                yield host, row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, action="append", default=[], help="a checkout; repeatable")
    parser.add_argument("--only", action="append", default=[], choices=[*CAPABILITIES, OTHERS])
    parser.add_argument("--minutes", type=float, default=60, help="the longest time of a cell")
    given = parser.parse_args(arguments)
    unknown = {version_of(host) for host in given.comfyui} - set(TESTED)
    if unknown:
        parser.error(f"{', '.join(unknown)}: not in TESTED of {Path(__file__).name}")
    now, results, failed = commit(), load(), False
    if not now:
        print("files differ from the last commit: what is measured now is not kept")
    for host, row in list(wanted(given.comfyui, given.only, results, now)):
        print(f"{version_of(host)}, {row}: ", end="", flush=True)
        cell = measure(host, files_of(row), now, given.minutes)
        if commit() != now:  # the code changed below it
            cell = cell._replace(commit="")
        print(f"{cell} in {cell.seconds} s", flush=True)
        failed = failed or bool(cell.failed)
        results = load()  # another run may have written beside this one
        results.setdefault(version_of(host), {})[row] = cell
        save(results)
    save(results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Tables of which every row is a network that runs in a process of its own; a file keeps the rows.

    network_rows.collect(names, "networks.json", is_done=lambda row: ..., run=lambda name: ...)

A failure is one row, and what ran before is not run again.
"""

import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import time


def chosen(known, pattern):
    """Returns the names that a shell pattern matches; ends the program where there are none."""
    names = [name for name in known if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise SystemExit(
            f"--only matches no network. Received: {pattern}. Known: {', '.join(known)}."
        )
    return names


def collect(names, path, *, is_done, run):
    """Returns {name: row} of all names; each new row is added to a JSON file at once.

    Args:
        names: Names of networks.
        path: Of the file.
        is_done: Function of a row from the file: whether the network need not run again.
        run: Function of a name that returns its row.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text()) if path.exists() else {}
    for number, name in enumerate(names, start=1):
        if name in rows and is_done(rows[name]):
            continue
        print(f"{number} of {len(names)}: {name}", flush=True)
        rows[name] = run(name)
        temporary = path.with_name(f"{os.getpid()}_{path.name}")
        temporary.write_text(json.dumps(rows, indent=1))
        temporary.replace(path)
    return {name: rows[name] for name in names}


def run_in_a_process(program, arguments, timeout_s=None):
    """Runs a program that prints a row as JSON in its last line; returns the row.

    Args:
        program: Path of the program.
        arguments: Of its command line.
        timeout_s: After so many seconds it is given up; None: never.

    Returns:
        The row; where the program failed, {"result": why, "seconds"}.
    """
    start_s = time.perf_counter()
    command = [sys.executable, program, *arguments]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"result": f"stopped after {timeout_s} s"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last_line = (process.stderr.strip().splitlines() or [""])[-1]
    if process.returncode < 0:
        last_line = f"killed by signal {-process.returncode}, out of memory?"
    return {"result": last_line, "seconds": time.perf_counter() - start_s}

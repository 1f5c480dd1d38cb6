"""Random networks over the whole vocabulary of Keras, by a command.

    python tests/random_networks.py --count=1000 --first_seed=0 --processes=1 --resume=out.jsonl

`random_drawing.draw(seed)` is a network as lines of Keras, the same for a seed always;
`random_checks.check(seed)` wraps, trains, saves and exports it, and compares the file with the
trained Keras graph. Every network is

exported   the file computes what `model.predict` computes, up to what roundings explain
refused    one sentence of the package names a layer, and `plan()` had announced it
wrong      something computes something else
foreign    any other error: of Keras, of NumPy, or one in which the package speaks of a defect
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from random_checks import Result, check, reason
from random_shrinking import shrunk

_WORKER_NETWORKS = 50
_WORKER_SECONDS = 1800


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--resume", default=None, help="a file of JSON lines; done seeds stay")
    parser.add_argument("--shrink", type=int, help="prints a small network that fails like this")
    parser.add_argument("--worker", action="store_true", help="runs in this process")
    options = parser.parse_args()
    if options.shrink is not None:
        print(shrunk(options.shrink, say=lambda text: print(text, flush=True))[1])
        return 0
    seeds = range(options.first_seed, options.first_seed + options.count)
    path = options.resume or os.path.join(tempfile.mkdtemp(), "results.jsonl")
    done = read_results(path)
    if options.worker:
        return work([seed for seed in seeds if seed not in done], path)
    blocks = [list(seeds)[i : i + _WORKER_NETWORKS] for i in range(0, len(seeds), _WORKER_NETWORKS)]
    threads = [
        threading.Thread(target=run_blocks, args=(blocks, path)) for _ in range(options.processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = read_results(path)
    return print_summary([done[seed] for seed in seeds if seed in done])


def read_results(path):
    """Returns {seed: Result} of a file of JSON lines; half a line at its end is no result."""
    results = {}
    if os.path.exists(path):
        for line in pathlib.Path(path).read_text().splitlines():
            try:
                result = Result(**json.loads(line))
            except ValueError:
                continue
            results[result.seed] = result
    return results


def append(path, result):
    with open(path, "a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def work(seeds, path):
    """Checks seeds in this process and writes each result at once."""
    for seed in seeds:
        result = check(seed)
        append(path, result)
        print(f"{seed} {result.status} {result.seconds} s", flush=True)
    return 0


def run_blocks(blocks, path):
    """Takes blocks of seeds and runs each in a process of its own, so that no memory grows."""
    while blocks:
        seeds = blocks.pop(0)
        while True:
            left = [seed for seed in seeds if seed not in read_results(path)]
            if not left:
                break
            command = [sys.executable, __file__, "--worker", f"--resume={path}"]
            command += [f"--first_seed={left[0]}", f"--count={seeds[-1] - left[0] + 1}"]
            try:
                code = subprocess.run(command, timeout=_WORKER_SECONDS).returncode
            except subprocess.TimeoutExpired:
                code = "a time-out"
            if code:
                still = [seed for seed in left if seed not in read_results(path)]
                if still:  # it died in the first of them
                    text = f"the process ended with {code}"
                    append(path, Result(still[0], "foreign", "process", text, ""))


def print_summary(results):
    """Prints counts, and every fault; returns the exit status."""
    counts = collections.Counter(result.status for result in results)
    for result in results:
        if result.is_fault:
            print(f"\n{result}")
    reasons = collections.Counter(reason(r.details) for r in results if r.status == "refused")
    print("\nrefused because of")
    for text, count in reasons.most_common():
        print(f"{count:5d}  {text}")
    seconds = sum(result.seconds for result in results)
    names = ("exported", "refused", "wrong", "foreign")
    print(f"\n{len(results)} networks: " + ", ".join(f"{counts[name]} {name}" for name in names))
    print(f"{seconds:.0f} s, {seconds / max(len(results), 1):.1f} s each")
    return int(any(result.is_fault for result in results) or not results)


if __name__ == "__main__":
    sys.exit(main())

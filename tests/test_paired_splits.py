"""What the benchmarks of networks in pairs do with splits, rates and rows."""

import functools
import pathlib

import pytest
from fresh_process import result_of

BENCHMARKS = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks"

# In a process of its own: the module defines flags that other examples have, too.
CODE = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
import numpy as np
import paired_splits

paired_splits.FLAGS(["program", "--w_bits=4,8", "--noisy_copies=3"])


def row(network, w_bits, test, float_test):
    return {
        "network": network, "w_bits": w_bits, "test": test, "float_test": float_test,
        "copies": 80.0, "float_copies": 80.5, "same_before": 99.5, "same": 100.0,
    }


rows = [row("A", 4, 90, 91), row("A", 8, 94, 94), row("B", 4, 50, 60), row("B", 8, 60, 60)]
rows += [row("A", 4, 92, 95), row("A", 8, 95, 96)]


def rates(seconds=None, ticks=(0,)):
    clock = iter(ticks)
    paired_splits.time = types.SimpleNamespace(perf_counter=lambda: next(clock))
    callback = paired_splits.Cosine(8.0, seconds)
    callback.set_params({"epochs": 4})
    optimizer = types.SimpleNamespace()
    callback.set_model(types.SimpleNamespace(optimizer=optimizer))
    found = []
    for epoch in range(4):
        callback.on_epoch_begin(epoch)
        found.append(optimizer.learning_rate)
    return found


image = np.zeros((1, 8, 8))
image[0, 3, 3] = 1
moved = paired_splits.shifted(image, np.random.default_rng(0), 200)
data, test, copies = paired_splits.load_split(0, 1)
print(json.dumps({
    "table": paired_splits.accuracy_table(rows, "network").splitlines()[2:],
    "by epochs": rates(),
    "by seconds": rates(10, (100, 100, 102.5, 105, 115)),
    "places": sorted({tuple(map(int, np.argwhere(each)[0])) for each in moved}),
    "sums": sorted(set(map(float, moved.sum((1, 2))))),
    "shapes": [[list(part.shape) for part in each] for each in (data, test, copies)],
    "labels": [bool((data[1][:1257] == data[1][1257:]).all()), copies[1][:539].tolist()],
    "test labels": test[1][:539].tolist(),
}))
"""


@functools.cache
def found():
    return result_of(CODE, BENCHMARKS)


def test_differences_are_those_of_pairs():
    # 90 − 91 and 92 − 95: −1 and −3, of standard deviation √2 with two splits.
    assert found()["table"] == [
        "| A W4/A8 | 2 | 93.00 ± 2.83 | 91.00 ± 1.41 | -2.00 ± 1.41 "
        "| 80.50 ± 0.00 | 80.00 ± 0.00 | -0.50 ± 0.00 | 99.50 → 100.00 |",
        "| A W8/A8 | 2 | 95.00 ± 1.41 | 94.50 ± 0.71 | -0.50 ± 0.71 "
        "| 80.50 ± 0.00 | 80.00 ± 0.00 | -0.50 ± 0.00 | 99.50 → 100.00 |",
        "| B W4/A8 | 1 | 60.00 ± 0.00 | 50.00 ± 0.00 | -10.00 ± 0.00 "
        "| 80.50 ± 0.00 | 80.00 ± 0.00 | -0.50 ± 0.00 | 99.50 → 100.00 |",
        "| B W8/A8 | 1 | 60.00 ± 0.00 | 60.00 ± 0.00 | 0.00 ± 0.00 "
        "| 80.50 ± 0.00 | 80.00 ± 0.00 | -0.50 ± 0.00 | 99.50 → 100.00 |",
    ]


def test_a_cosine_lowers_the_rate_by_epochs():
    # 8 (1 + cos(π e / 4)) / 2
    assert found()["by epochs"] == pytest.approx([8, 6.828427, 4, 1.171573])


def test_a_cosine_lowers_the_rate_by_seconds_and_ends_at_zero():
    assert found()["by seconds"] == pytest.approx([8, 6.828427, 4, 0])


def test_a_copy_is_moved_by_up_to_a_pixel():
    assert found()["places"] == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    assert found()["sums"] == [1.0]


def test_copies_of_images_have_their_labels():
    assert found()["shapes"] == [
        [[2514, 8, 8], [2514]],  # of 1,797 digits 30 %, and the others twice
        [[540, 8, 8], [540]],
        [[1620, 8, 8], [1620]],
    ]
    same, copied = found()["labels"]
    assert same
    assert copied == found()["test labels"]

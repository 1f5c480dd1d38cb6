"""The records of operations have no gaps: a missing part is found here, and not by a user."""

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export.folding.copying import COPYING, changes_nothing
from speq_keras.export.folding.grids import fixed_grid
from speq_keras.export.folding.node_rules import RULES
from speq_keras.export.lowering.encoding import encoding_of
from speq_keras.export.tflite import elementwise, functions, moving, pooling, products, volumes
from speq_keras.export.tflite.operations import OPS
from speq_keras.export.tflite.record import Op, always
from speq_keras.operations import Kind, make_operation
from speq_keras.operations.rows import LAYER_ROWS, OPERATION_ROWS

FAMILIES = elementwise, functions, moving, pooling, products, volumes
# Layers and operations that are known to copy, and that no kernel is known for: a new one has to be
# listed here or get a function in `copying`.
WITHOUT_KERNEL = {"BroadcastTo", "Split", "Unstack"}


def test_no_two_families_have_a_record_of_one_name():
    assert sum(len(family.OPS) for family in FAMILIES) == len(OPS)


@pytest.mark.parametrize("missing", ["emit", "integer", "floating"])
def test_a_record_without_a_part_cannot_be_made(missing):
    parts = {"emit": always("ADD"), "integer": np.add, "floating": np.add}
    del parts[missing]
    with pytest.raises(TypeError, match=missing):
        Op(**parts)


def test_a_record_needs_a_kernel():
    with pytest.raises(TypeError, match="integer, floating, or both"):
        Op(emit=always("ADD"), integer=None, floating=None)


def test_every_kind_of_node_has_a_rule():
    assert set(RULES) == set(Kind) - {Kind.QUANTIZER}


def known_to_copy():
    rows = [*LAYER_ROWS.values(), *(row for _, row in OPERATION_ROWS)]
    copies = {row.name for row in rows if row.kind in (Kind.CARRY, Kind.SAME_GRID)}
    return (
        copies
        - {row.name for row in rows if row.is_for_training}
        - {"ConvertToTensor", "Identity", "StopGradient"}
    )


def test_what_copies_has_a_function_or_is_known_to_have_no_kernel():
    assert known_to_copy() - set(COPYING) == WITHOUT_KERNEL
    assert set(COPYING) <= known_to_copy()


def test_layers_that_change_nothing_do_so_by_their_row():
    assert changes_nothing(layers.Dropout(0.5))
    assert changes_nothing(layers.Identity())
    assert not changes_nothing(layers.Flatten())


def test_all_that_moves_and_pools_but_means_keeps_the_grid():
    copying = {name for name, op in OPS.items() if op.copies}
    copies = {*moving.OPS, *pooling.OPS} - {"mean", "sum", "reduce_prod", "arg_max"}
    assert copying == copies | {"maximum", "minimum"}


FUNCTIONS = {"Sigmoid": "logistic", "Tanh": "tanh", "Softmax": "softmax"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_training_rounds_to_the_grid_that_a_kernel_demands(name):
    encoding = encoding_of(fixed_grid(make_operation(name)))
    assert (encoding.scale, encoding.zero_point) == OPS[FUNCTIONS[name]].demands


def test_only_products_have_a_bias():
    assert {name for name, op in OPS.items() if op.has_bias} == {
        "conv_2d",
        "depthwise_conv_2d",
        "fully_connected",
        "transpose_conv",
    }  # those of volumes have a bias in float alone


# ---- the checks of grids ---------------------------------------------------------------------


def test_a_product_of_tensors_beyond_its_kernel_is_computed_in_float():
    """Its sums are more than 255 steps of a grid that training has made tiny."""
    x = keras.Input((6, 8))
    query, key = (layers.Dense(8, name=name)(x) for name in ("query", "key"))
    scores = keras.ops.matmul(query, keras.ops.transpose(key, (0, 2, 1)))
    model = speq_keras.wrap(keras.Model(x, layers.Dense(3)(scores)), 8, 8, distillation=None)
    data = np.random.default_rng(0).normal(size=(8, 6, 8)).astype("float32")
    model.calibrate(data, verbose=0)
    names = {node.outputs[0]: node for node in speq_keras.fold(model).network.nodes}
    assert "batch_matmul" in {node.kind for node in names.values()}
    for quantizer in model.activation_quantizers:
        if quantizer.name.startswith("matmul"):
            for variable in quantizer.trainable_variables:
                variable.assign(variable * 1e-5)
    folded = speq_keras.fold(model)
    assert "output steps wide, and kernels accept" in folded.notes[0]
    assert "matmul" in folded.notes[-1]

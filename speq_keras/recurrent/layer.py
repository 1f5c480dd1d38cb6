"""A recurrent layer that computes each step as the integer file does."""

import contextlib
import types

import keras
import numpy as np
from keras import layers, ops

from speq_keras._checks import describe
from speq_keras.layers import QuantizedLayer
from speq_keras.recurrent.formulas import FORMULAS, Arithmetic

# The variables of a cell that are quantized.
PRODUCTS = ("cell.kernel", "cell.recurrent_kernel")


@keras.saving.register_keras_serializable(package="speq_keras")
class QuantizedRecurrent(QuantizedLayer):
    """Runs a recurrent layer with quantized weights, and rounds everything a file would round.

    All steps share one quantizer per role. The products with the inputs of all steps are computed
    at once before the loop, which is that of `keras.layers.RNN`. See `formulas`.

    Args:
        layer: An LSTM, GRU, SimpleRNN, or an RNN around such a cell; built or not.
        quantizers: {"cell.kernel": `WeightQuantizer`, "cell.recurrent_kernel": ...}.
        activation_quantizers: {role: `ActivationQuantizer`}; see `roles_of`.

    Example:
        >>> from speq_keras.quantizers import MinMax, PACT
        >>> lstm = layers.LSTM(2)
        >>> weights = {f"cell.{name}": MinMax() for name in ("kernel", "recurrent_kernel")}
        >>> rounding = {role: PACT(signed=True) for role in roles_of(lstm)}
        >>> QuantizedRecurrent(lstm, weights, rounding)(ops.ones((1, 3, 4))).shape == (1, 2)
        True
    """

    def __init__(self, layer, quantizers, activation_quantizers, **kwargs):
        super().__init__(layer, quantizers, **kwargs)
        if set(quantizers) != set(PRODUCTS):
            raise ValueError(
                f"`quantizers` must have one for each of {', '.join(PRODUCTS)}. "
                f"{describe(quantizers=list(quantizers))}"
            )
        roles = roles_of(layer)
        if set(activation_quantizers) != set(roles):
            raise ValueError(
                f"`activation_quantizers` must have one for each of {', '.join(roles)}. "
                f"{describe(activation_quantizers=list(activation_quantizers))}"
            )
        self.activation_quantizers = {role: activation_quantizers[role] for role in roles}
        if not self.trainable:
            for quantizer in self.activation_quantizers.values():
                quantizer.trainable = False
        self.activity_regularizer = layer.activity_regularizer
        self.activations = {
            role: layers.Activation(getattr(layer.cell, attribute), name=f"{self.name}.{role}")
            for role, attribute in self.formula.functions.items()
        }
        # Not tracked by Keras, because it has no weights.
        self._loop = types.SimpleNamespace(layer=None)

    @property
    def formula(self):
        """The `Formula` of the layer's cell."""
        return FORMULAS[type(self.layer.cell)]

    @property
    def reset_after(self):
        """For a GRU: whether the reset gate comes after the product with the state."""
        return getattr(self.layer.cell, "reset_after", True)

    def build(self, input_shape):
        super().build(input_shape)
        for quantizer in self.activation_quantizers.values():
            if not quantizer.built:
                quantizer.build((None, self.layer.cell.units))

    def call(self, inputs=None, *args, training=False, **kwargs):
        """Returns what the layer returns: the last output, or all, and the states if asked for.

        It accepts neither a mask nor an initial state: see `making.refusal`.
        """
        cell = self.layer.cell
        x = ops.cast(inputs, "float32")
        x = x * self._kept(ops.shape(x[:, :1]), cell.dropout, training)
        m = _Tensors(
            self, self._kept((ops.shape(x)[0], cell.units), cell.recurrent_dropout, training)
        )
        sums = [m.rounded("input_sums", _times(x, product)) for product in self.products("kernel")]
        if self.layer.go_backwards:
            sums = [ops.flip(x, axis=1) for x in sums]
        outputs, states = (self._in_a_row if self._is_observed() else self._in_a_loop)(m, sums)
        made = [outputs, *states] if self.layer.return_state else [outputs]
        made = [ops.cast(x, self.layer.compute_dtype) for x in made]
        return made if self.layer.return_state else made[0]

    def _kept(self, shape, rate, training):
        """Returns the dropout factors, the same in all steps."""
        if not training or not rate:
            return 1.0
        return keras.random.dropout(ops.ones(shape), rate, seed=self.layer.cell.seed_generator)

    def _is_observed(self):
        """Whether anything observes the quantizers: a compiled loop hides their inputs."""
        return any(q.observer is not None for q in self.activation_quantizers.values())

    def _in_a_row(self, m, sums):
        """Computes one step after another; returns the outputs and the last states."""
        states, outputs = (None,) * self.formula.states, []
        for step in range(sums[0].shape[1]):
            states = self.formula.step(m, [x[:, step] for x in sums], states)
            outputs.append(states[0])
        return ops.stack(outputs, axis=1) if self.layer.return_sequences else states[0], states

    def _in_a_loop(self, m, sums):
        """Like `_in_a_row`, with the loop of `keras.layers.RNN`."""
        if self._loop.layer is None:
            options = {"return_sequences": self.layer.return_sequences, "unroll": self.layer.unroll}
            name, cell = f"{self.name}_loop", _Cell(self.formula, self.layer.cell.units)
            self._loop.layer = layers.RNN(
                cell, return_state=True, name=name, dtype="float32", **options
            )
        cell = self._loop.layer.cell
        with cell.computing_with(m):
            outputs, *states = self._loop.layer(ops.concatenate(sums, axis=-1))
        return outputs, states

    # ---- the weights of one product ------------------------------------------------------------

    def products(self, attribute):
        """Returns [(kernel, bias or None), ...] of the products with quantized weights, in order.

        Args:
            attribute: "kernel" or "recurrent_kernel".
        """
        quantizer, variable = (x(f"cell.{attribute}") for x in (self.quantizers.get, self.variable))
        count = len(self.formula.order)
        kernels = ops.split(quantizer(variable.value), count, axis=-1)
        biases = self._biases()[attribute]
        made = []
        for first, last in self.formula.parts:
            gates = self.formula.order[first:last]
            found = [biases[gate] for gate in gates if gate in biases]
            bias = ops.concatenate(found, axis=-1) if found else None
            made.append((ops.concatenate([kernels[gate] for gate in gates], axis=-1), bias))
        return made

    def _biases(self):
        """Returns {attribute of a kernel: {gate: its bias}}.

        A GRU whose reset gate comes after the product has two rows, for inputs and states. If both
        are added to the same sum, their total is added to the inputs.
        """
        bias = self.layer.cell.bias
        if bias is None:
            return {"kernel": {}, "recurrent_kernel": {}}
        rows = ops.cast(bias.value, "float32")
        rows = ops.reshape(rows, (-1, len(self.formula.order), self.layer.cell.units))
        gates = {gate: rows[0, gate] for gate in self.formula.order}
        if rows.shape[0] == 1:
            return {"kernel": gates, "recurrent_kernel": {}}
        *added, last = self.formula.order
        gates.update({gate: gates[gate] + rows[1, gate] for gate in added})
        return {"kernel": gates, "recurrent_kernel": {last: rows[1, last]}}

    def move_bias(self, attribute, part, shift):
        """Adds `shift`, per column of a product, to the product's bias.

        Args:
            attribute: As in `products`.
            part: The index of the product.
            shift: NumPy array.
        """
        bias, (first, last) = self.layer.cell.bias, self.formula.parts[part]
        units, gates = self.layer.cell.units, self.formula.order[first:last]
        values = np.array(ops.convert_to_numpy(bias.value))
        rows = values.reshape(-1, len(self.formula.order), units)  # a view
        rows[int(attribute == "recurrent_kernel"), list(gates)] += shift.reshape(-1, units)
        bias.assign(values)

    def get_config(self):
        """Returns the constructor's arguments."""
        quantizers = {
            role: keras.saving.serialize_keras_object(quantizer)
            for role, quantizer in self.activation_quantizers.items()
        }
        return {**super().get_config(), "activation_quantizers": quantizers}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes the layer from the values of `get_config`."""
        config = dict(config)
        config["activation_quantizers"] = {
            role: keras.saving.deserialize_keras_object(quantizer)
            for role, quantizer in config["activation_quantizers"].items()
        }
        return super().from_config(config, custom_objects)


def roles_of(layer):
    """Returns the names of everything a recurrent layer rounds, in a fixed order."""
    formula = FORMULAS[type(layer.cell)]
    return tuple(dict.fromkeys((*formula.roles, *formula.functions)))


def _times(x, product):
    kernel, bias = product
    y = ops.matmul(x, kernel)
    return y if bias is None else y + bias


class _Tensors(Arithmetic):
    """Computes steps on tensors.

    Args:
        layer: The `QuantizedRecurrent`.
        kept: The dropout factors for states before a product, or 1.0.
    """

    def __init__(self, layer, kept):
        super().__init__(layer.reset_after)
        self.layer, self.kept = layer, kept
        self.products = layer.products("recurrent_kernel")

    def recurrent(self, part, h):
        """The product with a state, rounded."""
        kernel, bias = self.products[part]
        if h is None:
            return None if bias is None else self.rounded("recurrent_sums", bias[None])
        return self.rounded("recurrent_sums", _times(h * self.kept, self.products[part]))

    def rounded(self, role, x):
        """`x` on the grid of a role."""
        return self.layer.activation_quantizers[role](x)

    def activated(self, role, x):
        """The activation function of a role."""
        return self.layer.activations[role](x)

    def columns(self, x, first, last):
        """Some of the gates."""
        units = self.layer.layer.cell.units
        return x[:, first * units : last * units]

    def split(self, x, count):
        """Splits off each gate."""
        return [self.columns(x, n, n + 1) for n in range(count)]

    def sum(self, a, b):
        """Returns a + b."""
        return a + b

    def difference(self, a, b):
        """Returns a − b."""
        return a - b

    def product(self, a, b):
        """Returns a · b."""
        return a * b

    def negative(self, x):
        """Returns −x."""
        return -x


class _Cell(layers.Layer):
    """A cell without weights, which uses tensors from outside the loop.

    Args:
        formula: The `Formula`.
        units: Columns of every gate.
    """

    def __init__(self, formula, units):
        super().__init__(name="cell", dtype="float32")
        self.formula, self.units = formula, units
        self.state_size = [units] * formula.states
        self.output_size = units
        self._known = types.SimpleNamespace(arithmetic=None)

    @contextlib.contextmanager
    def computing_with(self, arithmetic):
        """Sets the arithmetic during one call of the loop."""
        self._known.arithmetic = arithmetic
        try:
            yield
        finally:
            self._known.arithmetic = None

    def call(self, sums, states):
        """Returns the output and the states of a step."""
        m = self._known.arithmetic
        units = self.units
        parts = [sums[:, first * units : last * units] for first, last in self.formula.parts]
        states = list(self.formula.step(m, parts, tuple(states)))
        return states[0], states

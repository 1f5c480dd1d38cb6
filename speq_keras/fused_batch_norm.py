"""BatchNormalization that trains with TensorFlow's fused kernel."""

import keras
from keras import layers, ops


# Named like its base class, because reports, plans and export use class names.
@keras.saving.register_keras_serializable(package="speq_keras")
class BatchNormalization(layers.BatchNormalization):
    """Computes Keras' BatchNormalization with one kernel forward and one backward.

        y = γ · (x − mean(x)) / √(var(x) + ε) + β
        moving ← momentum · moving + (1 − momentum) · new

    Keras uses about ten operations, each of which passes over the whole tensor. Values, gradients
    and moving statistics are the same to float accuracy.

    The kernel runs in training on the TensorFlow backend, on tensors with four axes of which the
    last is normalized, in at most 32 bits. Everything else is left to Keras' own code: inference,
    masks, `renorm`, `synchronized`, other backends.

    Args:
        All arguments of `keras.layers.BatchNormalization`.

    Example:
        >>> layer = BatchNormalization(momentum=0.5)
        >>> y = layer(keras.ops.reshape([1.0, 3.0], (1, 2, 1, 1)), training=True)
        >>> float(layer.moving_mean[0]), float(layer.moving_variance[0])
        (1.0, 1.0)
    """

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`: with the kernel if possible, otherwise like Keras."""
        if not (training and self.trainable and mask is None and self._has_kernel(inputs)):
            return super().call(inputs, training=training, mask=mask)
        x = ops.cast(inputs, "float32")
        channels = (inputs.shape[-1],)
        gamma = ops.cast(self.gamma, "float32") if self.scale else ops.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else ops.zeros(channels)
        y, mean, variance = _kernel(x, gamma, beta, self.epsilon)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            before = ops.cast(moving, "float32")
            moving.assign(before * self.momentum + new * (1.0 - self.momentum))
        return ops.cast(y, self.compute_dtype)

    def _has_kernel(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and keras.backend.result_type(inputs.dtype, "float32") == "float32"
            and not self.synchronized
            and not getattr(self, "renorm", False)  # older Keras lacks it
        )


def fused(layer):
    """Returns a copy of a Keras BatchNormalization with the kernel; other layers unchanged.

    Weights are not copied.

    Example:
        >>> type(fused(layers.BatchNormalization())) is BatchNormalization
        True
    """
    if type(layer) is not layers.BatchNormalization:
        return layer
    copy = BatchNormalization.from_config(layer.get_config())
    if layer.built:
        copy.build_from_config(layer.get_build_config())
    return copy


def _kernel(x, gamma, beta, epsilon):
    """Returns `(y, mean, variance)`; no gradient flows through the statistics."""
    import tensorflow as tf  # only if it is the backend

    none = tf.zeros([0])
    made = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
    )
    # The kernel divides the sum of squares by n − 1, Keras by n.
    count = tf.cast(tf.size(x) // x.shape[-1], "float32")
    return made.y, made.batch_mean, made.batch_variance * ((count - 1.0) / count)

"""CIFAR-10 on the device itself, for JAX: images stay there, and one call runs many steps.

A GPU needs less time for a step of a small network than Python to launch the next one. Here the
batches are drawn, cropped and flipped inside the compiled program, and on a GPU one call runs
`steps_per_call` steps. With several devices or processes, each works on its part of the same
batches. `fit`, its callbacks and its checkpoints are unchanged: only Keras' train function is
replaced, which `keras.Model` keeps in an attribute for that purpose.
"""

import functools

import jax
import keras
import numpy as np

# Enough to hide the time of a call, and few enough for a progress bar that moves.
MOST_STEPS_PER_CALL = 100


class DeviceStream:
    """Shuffled, augmented batches that are determined by the seed and the step number.

    The optimizer counts the steps, and checkpoints contain that count: a resumed run sees the same
    batches as an unbroken run.

    Args:
        images, labels: Arrays; images of any integer type, from 0 to 255.
        seed: Non-negative integer.
        batch_size: Images per step.
        steps_per_epoch: Steps between two evaluations of the model.
        first_step: Position of the first step in the stream, in steps.
    """

    def __init__(self, images, labels, *, seed, batch_size, steps_per_epoch, first_step=0):
        self.everywhere, self.split = _shardings()
        self.images = jax.device_put(np.asarray(images), self.everywhere)
        self.labels = jax.device_put(np.asarray(labels), self.everywhere)
        self.seed = seed
        self.batch_size = batch_size
        self.first_step = first_step
        # On a CPU a step takes long enough anyway, and XLA's convolutions take fifty times as long
        # inside a loop as outside.
        most = 1 if jax.default_backend() == "cpu" else MOST_STEPS_PER_CALL
        self.steps_per_call = max(n for n in range(1, most + 1) if steps_per_epoch % n == 0)
        self.example = np.asarray(images[:batch_size], "float32"), np.asarray(labels[:batch_size])

    def batches(self, step):
        """Yields one item per call, endlessly; Keras reads shapes from the first."""
        while True:
            yield self.example

    def attach(self, model):
        """Makes a compiled model train on this stream."""
        iterations = next(
            number
            for number, variable in enumerate(model.optimizer.variables)
            if variable is model.optimizer.iterations
        )

        @functools.partial(jax.jit, out_shardings=self.everywhere)
        def steps(state, images, labels):
            def step(state, _):
                batch = self.batch(state[2][iterations], images, labels)
                logs, state = model.train_step(state, batch)
                return tuple(state), logs

            if self.steps_per_call == 1:
                state, logs = step(state, None)
                return logs, state
            state, logs = jax.lax.scan(step, state, length=self.steps_per_call)
            # Metrics are running means: their values after the last step count.
            return jax.tree.map(lambda values: values[-1], logs), state

        def train_function(state, iterator):
            next(iterator)
            return steps(tuple(state), self.images, self.labels)

        model.train_function = train_function

    def batch(self, iteration, images, labels):
        """Returns the images and labels of one step."""
        key = jax.random.key(self.seed)
        number = self.first_step + iteration
        per_pass = max(1, len(images) // self.batch_size)
        # Every pass over the images has its own permutation.
        pass_key = jax.random.fold_in(jax.random.fold_in(key, 0), number // per_pass)
        order = jax.random.permutation(pass_key, len(images))
        start = (number % per_pass) * self.batch_size
        rows = jax.lax.dynamic_slice_in_dim(order, start, min(self.batch_size, len(order)))
        step_key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
        batch = pad_crop_flip(images[rows], step_key), labels[rows]
        if self.split is None:
            return batch
        # Every device works on its part of the same batch.
        return jax.lax.with_sharding_constraint(batch, self.split)


def _shardings():
    """Returns shardings that replicate and that split an array; None for one device."""
    if keras.distribution.distribution() is None:
        return None, None
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    parts = (jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch"))
    return tuple(jax.sharding.NamedSharding(mesh, part) for part in parts)


def pad_crop_flip(images, key):
    """Shifts images by up to four pixels in each direction and mirrors every second one."""
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    padded = keras.ops.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    offsets = jax.random.randint(crop_key, (count, 2), 0, 9)

    def crop(padded_and_offset):
        image, offset = padded_and_offset
        return keras.ops.slice(image, (offset[0], offset[1], 0), (height, width, channels))

    cropped = keras.ops.vectorized_map(crop, (padded, offsets))
    mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    images = keras.ops.where(mirrored, keras.ops.flip(cropped, axis=2), cropped)
    return keras.ops.cast(images, "float32")

"""CIFAR-10 batches for training through `tf.data`, the same in a resumed run."""

import keras
import tensorflow as tf


class TrainingStream:
    """Shuffled, augmented batches: each image follows from the seed and its position in the stream.

    No random state is kept that would be lost when a run is killed: a resumed run, which begins at
    a later epoch, sees what the unbroken run sees. Keras does not tell a `tf.data` pipeline the
    epoch, so `callback` keeps it in a variable, and the pipeline reads that.

    Args:
        images, labels: Arrays; images of any integer type, from 0 to 255.
        seed: Non-negative integer.
        batch_size: Images per step.
        steps_per_epoch: Batches in one pass over `dataset`.
        first_epoch: Where in the stream the first epoch begins, in epochs.
    """

    def __init__(self, images, labels, *, seed, batch_size, steps_per_epoch, first_epoch=0):
        images, labels = tf.constant(images), tf.constant(labels)
        image_count = images.shape[0]
        examples_per_epoch = steps_per_epoch * batch_size
        epoch = tf.Variable(0, dtype="int64", trainable=False)

        def example(index):
            position = (first_epoch + epoch) * examples_per_epoch + index
            # Every pass over the images has a permutation of its own.
            row = tf.random.experimental.index_shuffle(
                position % image_count, [seed, position // image_count], image_count - 1
            )
            return pad_crop_flip(images[row], [seed, position]), labels[row]

        self.dataset = (
            tf.data.Dataset.range(examples_per_epoch)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )
        self.callback = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda number, logs: epoch.assign(number)
        )

    def attach(self, model):
        """Does nothing: `fit` reads `dataset`."""


def pad_crop_flip(image, seed, *, shift=4, mirror=True):
    """Shifts an image by up to `shift` pixels in each direction and mirrors every second one."""
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
    padded = tf.pad(image, ((shift, shift), (shift, shift), (0, 0)))
    image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
    if mirror:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return tf.cast(image, "float32")

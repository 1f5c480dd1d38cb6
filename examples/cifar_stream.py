"""CIFAR-10 batches for training through `tf.data`, the same in a resumed run."""

import tensorflow as tf


class TrainingStream:
    """Shuffled, augmented batches: each image is determined by the seed and its position.

    There is no random state to lose when a run is killed: a resumed run, which starts at a later
    step, sees the same images as an unbroken run.

    Args:
        images, labels: Arrays; images of any integer type, from 0 to 255.
        seed: Non-negative integer.
        batch_size: Images per step.
        steps_per_epoch: Steps between two evaluations of the model.
        first_step: Position of the first step in the stream, in steps.
    """

    steps_per_call = 1

    def __init__(self, images, labels, *, seed, batch_size, steps_per_epoch, first_step=0):
        self.images, self.labels = tf.constant(images), tf.constant(labels)
        self.seed = seed
        self.batch_size = batch_size
        self.first_step = first_step

    def batches(self, step):
        """Returns endless batches from a step on."""
        count = self.images.shape[0]

        def example(position):
            # Every pass over the images has its own permutation.
            row = tf.random.experimental.index_shuffle(
                position % count, [self.seed, position // count], count - 1
            )
            return pad_crop_flip(self.images[row], [self.seed, position]), self.labels[row]

        return (
            tf.data.Dataset.range((self.first_step + step) * self.batch_size, tf.int64.max)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(self.batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )

    def attach(self, model):
        """Does nothing: `fit` reads `batches`."""


def pad_crop_flip(image, seed, *, shift=4, mirror=True):
    """Shifts an image by up to `shift` pixels in each direction and mirrors every second one."""
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
    padded = tf.pad(image, ((shift, shift), (shift, shift), (0, 0)))
    image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
    if mirror:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return tf.cast(image, "float32")

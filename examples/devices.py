"""Training one network on several devices or in several processes."""

import contextlib

import keras


def join_processes(coordinator, processes, process_id):
    """Makes this process one of several that train one network, on JAX.

    Args:
        coordinator: Address and port of the first process.
        processes: Number of processes.
        process_id: Index of this process.
    """
    import jax  # only if it is the backend

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    keras.distribution.initialize(coordinator, processes, process_id)
    train_on_all_devices()


def is_first_process():
    """Whether this process is the one that writes files and prints."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


def train_on_all_devices():
    """Makes JAX train on all devices of all processes, each on its part of a batch."""
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=keras.distribution.list_devices(), auto_shard_dataset=False
        )
    )


def divide_cpu(count):
    """Splits the CPU into this many devices; call before anything else uses it."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", count)
        return
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )


def scope(strategy):
    """Returns the scope in which variables are made for a strategy.

    Args:
        strategy: "none", or "mirrored": all devices of this machine.
    """
    if strategy == "none":
        return contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        train_on_all_devices()
        return contextlib.nullcontext()
    import tensorflow as tf

    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    return tf.distribute.MirroredStrategy(
        [device.name for device in tf.config.list_logical_devices(kind)]
    ).scope()

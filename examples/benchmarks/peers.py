"""How long a training step takes beside that of other packages, on the same network.

    python examples/benchmarks/peers.py
    python examples/benchmarks/peers.py --peers=tfmot,speq_keras --rounds=30

Every package gets an environment of its own (`python -m venv`, pinned versions, 2 to 3 GB each) and
a process that is kept alive (`peer_worker.py`); all take turns, a few steps each, round after
round. tf_keras and speq_keras compute BatchNormalization with TensorFlow's fused kernel, Keras 3
itself does not ("Keras' BN"). Beside each stands the float step of the same network in the same
environment: tf_keras and Keras 3 do not take the same time for it. Ratios are formed within a
round. Prints a Markdown table; writes it with all step times to `peers.json`. A package that cannot
be installed or run gets a row that says why.

What is quantized is not the same everywhere: tfmot rounds weights and activations to 8 bits,
QKeras weights and ReLUs to the widths given, HGQ2 trains a width for everything; speq_keras rounds
to the widths given and also to 8 bits what is added or averaged, as integer kernels do.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys

import numpy as np
import step_times
from absl import app, flags

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Peer:
    """What a package needs in its environment, and which widths it trains."""

    packages: tuple
    bits: str


TENSORFLOW = ("tensorflow==2.21.0", "numpy==2.4.6")
KERAS = (*TENSORFLOW, "keras==3.15.1")
PEERS = {
    "tfmot": Peer((*KERAS, "tensorflow-model-optimization==0.8.1", "tf_keras==2.21.0"), "W8/A8"),
    "QKeras": Peer((*KERAS, "qkeras-v3==1.2.1"), "W{w_bits}/A{a_bits}"),
    "HGQ2": Peer((*KERAS, "HGQ2==0.2.0"), "trained"),
    "speq_keras": Peer((*KERAS, "ai-edge-litert==2.3.0"), "W{w_bits}/A{a_bits}"),
}
OURS = ("speq_keras", "QAT")

flags.DEFINE_list("peers", list(PEERS), "The packages to measure.")
flags.DEFINE_integer("w_bits", 4, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 4, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_integer("batch_size", 128, "Images per step.", 1)
flags.DEFINE_integer("rounds", 15, "How often each method gets its turn.", 2)
flags.DEFINE_integer("steps", 4, "Measured steps in one turn.", 1)
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for peers.json and the environments.")


class CannotMeasure(Exception):
    """Why a package has no numbers."""


def main(_):
    unknown = sorted(set(FLAGS.peers) - set(PEERS))
    if unknown:
        raise SystemExit(f"--peers takes {', '.join(PEERS)}. Received: {', '.join(unknown)}.")
    out_dir = pathlib.Path(FLAGS.out_dir)
    workers, reasons = {}, {}
    try:
        for name in FLAGS.peers:
            print(f"{name}: preparing", flush=True)
            try:
                python = environment(out_dir / "environments" / name, PEERS[name].packages)
                workers[name] = Worker(name, python, out_dir / f"peer_{name}.log")
            except CannotMeasure as error:
                reasons[name] = str(error)
        check_same_network(workers)
        step_times_s = measure(workers, reasons)
    finally:
        for worker in workers.values():
            worker.stop()
    bases = {
        (name, method): base
        for name, worker in workers.items()
        if name not in reasons
        for method, base in worker.greeting["bases"].items()
    }
    table = peer_table(step_times_s, bases, reasons)
    print(f"\n{table}")
    result = {
        "flags": {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)},
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.machine()},
        "versions": {name: worker.greeting["versions"] for name, worker in workers.items()},
        "last_losses": {name: worker.losses for name, worker in workers.items()},
        "reasons": reasons,
        "table": table,
        "step_times_s": {f"{name}: {method}": s for (name, method), s in step_times_s.items()},
    }
    path = out_dir / "peers.json"
    temporary = path.with_name(f"{os.getpid()}_{path.name}")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(path)


def environment(folder, packages):
    """Makes a virtual environment with these packages, unless it is there; returns its Python.

    Raises:
        CannotMeasure: If a package cannot be installed.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    record = folder / "packages.json"
    if record.exists() and json.loads(record.read_text()) == list(packages):
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotMeasure(f"not installed: {last_line(done.stderr + done.stdout)}")
    record.write_text(json.dumps(packages))
    return python


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no message"])[-1]


class Worker:
    """The process of one package.

    Args:
        name: The package, a key of `PEERS`.
        python: The interpreter of its environment.
        log: The file for what the process prints.

    Attributes:
        greeting: What the process says of itself, see `peer_worker.py`.
        losses: {method: loss after its last turn}.
    """

    def __init__(self, name, python, log):
        names = ("w_bits", "a_bits", "batch_size")
        settings = {"peer": name, **{flag: getattr(FLAGS, flag) for flag in names}}
        program = pathlib.Path(__file__).with_name("peer_worker.py")
        self.log = log
        self.losses = {}
        removed = ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [str(python), str(program), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={
                    **{key: value for key, value in os.environ.items() if key not in removed},
                    "KERAS_BACKEND": "tensorflow",
                },
            )
        self.greeting = self.answer()

    def take_turn(self, method):
        """Returns the times in seconds of a few steps."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and the answer says why
            self.process.stdin.write(json.dumps({"method": method, "steps": FLAGS.steps}) + "\n")
            self.process.stdin.flush()
        answer = self.answer()
        self.losses[method] = answer["loss"]
        return answer["step_times_s"]

    def answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": last_line(self.log.read_text())}
        if "error" in answer:
            self.stop()
            raise CannotMeasure(f"does not run: {answer['error']}")
        return answer

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # which ends its loop
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def check_same_network(workers):
    """Raises SystemExit if the float networks differ in their number of parameters."""
    parameters = {name: worker.greeting["parameters"] for name, worker in workers.items()}
    if len(set(parameters.values())) > 1:
        raise SystemExit(f"The float networks must be the same. Received: parameters {parameters}.")


def measure(workers, reasons):
    """Lets all methods take turns.

    Args:
        workers: {package: its `Worker`}.
        reasons: {package: why it has no numbers}; packages that fail are added.

    Returns:
        {(package, method): one list of step times in seconds per round}.
    """
    times_s = {}
    for name, worker in workers.items():
        for method in dict.fromkeys(
            [*worker.greeting["bases"].values(), *worker.greeting["bases"]]
        ):
            print(f"{name}: compiling {method}", flush=True)
            try:
                worker.take_turn(method)
            except CannotMeasure as error:
                reasons[name] = str(error)
                break
            times_s[name, method] = []
    times_s = {key: [] for key in times_s if key[0] not in reasons}
    for number in range(FLAGS.rounds):
        # Each round starts with another method: none always follows the same one.
        keys = list(times_s)
        for index in np.roll(np.arange(len(keys)), number):
            name, method = keys[index]
            if name in reasons:
                continue
            try:
                times_s[name, method].append(workers[name].take_turn(method))
            except CannotMeasure as error:
                reasons[name] = str(error)
        print(f"round {number + 1} of {FLAGS.rounds}", flush=True)
    return {key: rounds_s for key, rounds_s in times_s.items() if key[0] not in reasons}


def peer_table(step_times_s, bases, reasons):
    """Returns a Markdown table.

    Args:
        step_times_s: {(package, method): one list of step times in seconds per round}.
        bases: {(package, method): the float method of that package that it is compared with}.
        reasons: {package: why it has no numbers}.
    """
    lines = [
        f"ResNet-8, batch size {FLAGS.batch_size}, {os.cpu_count()} CPU cores; medians of "
        f"{FLAGS.rounds} rounds of {FLAGS.steps} steps, ratios with (lower to upper quartile).",
        "",
        "| package | bits | method | ms | float, ms | ms / float | ms / our QAT |",
        "| --- " * 7 + "|",
    ]
    for (name, method), base in bases.items():
        rounds_s, base_s = step_times_s[name, method], step_times_s[name, base]
        cells = [
            name,
            PEERS[name].bits.format(w_bits=FLAGS.w_bits, a_bits=FLAGS.a_bits),
            method,
            step_times.milliseconds(rounds_s),
            step_times.milliseconds(base_s),
            step_times.ratio(rounds_s, base_s),
            step_times.ratio(rounds_s, step_times_s[OURS]) if OURS in step_times_s else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | {why.replace('|', '/')} |" + " |" * 5 for name, why in reasons.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)

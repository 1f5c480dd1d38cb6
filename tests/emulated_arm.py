"""Runs exported files on emulated ARM CPUs and tells how many values differ from this machine's.

    python tests/emulated_arm.py
    python tests/emulated_arm.py --networks=resnet8 --cpus=cortex-a53

The self test of every network in `examples/benchmarks/device_networks.py`, as int8 and as int4, and
of one file as "smallest", runs on LiteRT's own ARM wheel in QEMU's user mode. Nothing is installed:
QEMU, an ARM Python and the wheel (180 MB) are unpacked into a folder that stays, `--home`.
Prints a Markdown table. Ends with status 1 where a value of an int8 or int4 file differs, or
another number of values of the "smallest" one than was simulated, and with status 2 and a sentence
where nothing could be fetched or run.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "examples" / "benchmarks"))
import device_networks

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNNER = ROOT / "speq_keras" / "export" / "runner.py"  # as `export_tflite(self_test=...)` writes it
# Each computes 8-bit products by other instructions.
CPUS = {
    "cortex-a53": "NEON",
    "cortex-a76": "dot products",
    "neoverse-v1": "SVE, int8 matrix products",
    "max": "SME",
}
STORAGES = ("int8", "int4")
ROUNDS_TWICE_HERE = ("resnet8", "smallest")  # there as many values differ as are simulated

RELEASE = "trixie"  # Debian 13: the QEMU of Debian 12 computes SME wrong
MIRROR = "https://deb.debian.org/debian"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PYTHON = "3.13"  # of Debian 13
PACKAGES = (
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
    *("libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8"),
    *("libbz2-1.0", "liblzma5", "libssl3t64", "libsqlite3-0", "libuuid1", "libcrypt1"),
)
WHEELS = ("numpy", "flatbuffers", "ml_dtypes", "backports.strenum", "protobuf", "tqdm")
PLATFORMS = ("2014", "_2_17", "_2_27", "_2_28")

# Loads Python, NumPy and LiteRT once for all files, which takes longer than most of them.
DRIVER = """
import runpy, sys
site, runner, *files = sys.argv[1:]
sys.path.insert(0, site)
main = runpy.run_path(runner)["main"]
for model, data in zip(files[::2], files[1::2]):
    main(model, data)
    sys.stdout.flush()
"""
LINE = re.compile(r"(\d+) output values compared, (\d+) differ")


class CannotRunError(Exception):
    """Says in a sentence what is missing here."""


# ---- what is fetched -------------------------------------------------------------------------


def fetch(home):
    """Returns the folder with `qemu-aarch64`, an ARM system ("root") and wheels ("site").

    Args:
        home: Folder for all versions; LiteRT's is the one that is installed here.

    Raises:
        CannotRunError: If apt-get or dpkg is missing, or something cannot be fetched.
    """
    version = importlib.metadata.version("ai-edge-litert")
    folder = home / f"{RELEASE}-litert-{version}"
    if folder.is_dir():
        return folder
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise CannotRunError(
                f"An emulated ARM CPU needs apt-get and dpkg, of Debian or Ubuntu, to unpack QEMU. "
                f"There is no {tool} here."
            )
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".new_") as new:
        new = pathlib.Path(new)
        _unpack_debian(new)
        _unpack_wheels(new / "site", version)
        shutil.rmtree(new / "apt")
        (new / "whole").mkdir()
        for part in ("qemu/usr/bin/qemu-aarch64", "root", "site"):
            (new / part).rename(new / "whole" / pathlib.Path(part).name)
        (new / "whole").rename(folder)  # there is a whole one, or none
    return folder


def _unpack_debian(new):
    """Unpacks QEMU for this machine, and Python with its libraries for ARM."""
    host = _output(["dpkg", "--print-architecture"]).strip()
    apt = new / "apt"
    for name in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / name).mkdir(parents=True)
    # Without Debian's keys the mirror's certificate has to do.
    trust, mirror = ("trusted=yes", MIRROR)
    if KEYRING.exists():
        trust, mirror = f"signed-by={KEYRING}", _own_mirror()
    sources = apt / "sources.list"
    sources.write_text(f"deb [arch={host},arm64 {trust}] {mirror} {RELEASE} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "APT::Architecture": host,
        "APT::Architectures": f"{host},arm64",
        "APT::Sandbox::User": "root",  # the folder belongs to us
        "Acquire::Languages": "none",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _output([*command, "update"])
    names = [f"qemu-user:{host}", *(f"{name}:arm64" for name in PACKAGES)]
    _output([*command, "download", *names], cwd=apt / "debs")
    for package in sorted((apt / "debs").iterdir()):
        part = "qemu" if package.name.startswith("qemu-user") else "root"
        _output(["dpkg", "-x", package, new / part])
    if not (new / "root" / "lib").exists():
        (new / "root" / "lib").symlink_to("usr/lib")


def _own_mirror():
    """Returns the Debian mirror that this machine uses."""
    folder = pathlib.Path("/etc/apt")
    for path in (folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))):
        if path.is_file():
            found = re.search(r"^[^#\n]*?(https?://\S+/debian)/?(?=\s)", path.read_text(), re.M)
            if found:
                return found[1]
    return MIRROR


def _unpack_wheels(site, version):
    """Unpacks LiteRT's ARM wheel, of the version that is installed here, and what it imports."""
    wheels = site.with_name("apt") / "wheels"
    names = [f"ai-edge-litert=={version}", *WHEELS]
    platforms = [f"--platform=manylinux{number}_aarch64" for number in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={PYTHON}", "--implementation=cp", *platforms]
    _output([*command, "-d", wheels, *names])
    for wheel in sorted(wheels.iterdir()):
        shutil.unpack_archive(wheel, site, "zip")


def _output(command, cwd=None):
    """Returns what a command prints.

    Raises:
        CannotRunError: If it fails, with the last line that it says.
    """
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    raise CannotRunError(
        "What an emulated ARM CPU needs cannot be fetched; that takes a network, Debian's packages "
        f"and PyPI. `{pathlib.Path(command[0]).name}` ended with status {done.returncode}: "
        f"{lines[-1].strip() if lines else 'it said nothing'}"
    )


# ---- what is run -----------------------------------------------------------------------------


def run(machine, cpu, files):
    """Yields (values that differ, values compared) of each file on a CPU, as each is done.

    Args:
        machine: What `fetch` returned.
        cpu: A name of `qemu-aarch64 -cpu help`.
        files: [(path of a .tflite file, path of its self test)].

    Raises:
        CannotRunError: If the emulated program ends before it has told of every file.
    """
    paths = [str(path) for pair in files for path in pair]
    command = [machine / "qemu-aarch64", "-cpu", cpu, "-L", machine / "root"]
    command += [machine / f"root/usr/bin/python{PYTHON}", "-I", "-c", DRIVER]
    command += [machine / "site", RUNNER, *paths]
    told = 0
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            for line in process.stdout:
                compared, differing = LINE.fullmatch(line.strip()).groups()
                told += 1
                yield int(differing), int(compared)
        if process.returncode or told < len(files):
            errors.seek(0)
            said = errors.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
            raise CannotRunError(
                f"On {cpu} the program ended with status {process.returncode} after {told} of "
                f"{len(files)} files. Its last word: {last}"
            )


def table(rows, cpus):
    """Returns the Markdown table.

    Args:
        rows: {(network, storage): {cpu: (values that differ, values compared)}}.
        cpus: Names of the columns.
    """
    head = ["network", "storage", "values", *cpus]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for (network, storage), counts in rows.items():
        values = {compared for _, compared in counts.values()}
        cells = [network, f"`{storage}`", "/".join(map(str, sorted(values)))]
        cells += [str(counts[cpu][0]) if cpu in counts else "" for cpu in cpus]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def faults(rows, shares):
    """Returns the files of which another number of values differs than their reports say.

    Args:
        rows: As in `table`.
        shares: {(network, storage): share of the values that differs, 0 for the same network}.
    """
    return [
        " ".join(key)
        for key, counts in rows.items()
        if any(differing != round(shares[key] * total) for differing, total in counts.values())
    ]


def _versions(machine):
    """Returns a line that says what was run."""
    qemu = _output([machine / "qemu-aarch64", "--version"]).split()[2]
    numpy = next((machine / "site").glob("numpy-*.dist-info")).name.split("-")[1].split(".dist")[0]
    litert = importlib.metadata.version("ai-edge-litert")
    return (
        f"QEMU {qemu}, Python {PYTHON} and NumPy {numpy} for ARM, LiteRT {litert} there and here "
        f"({platform.machine()}); {datetime.date.today()}"
    )


def main(arguments=None):
    """Exports, runs, prints; returns the exit status."""
    options = _options(arguments)
    try:
        machine = fetch(options.home)
        with tempfile.TemporaryDirectory() as folder:
            rows, shares = _measure(machine, options, folder)
        print(f"\n{_versions(machine)}\n\n{table(rows, options.cpus)}")
    except CannotRunError as error:
        print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    found = faults(rows, shares)
    if found:
        print(f"These are not what their reports say on ARM: {', '.join(found)}", file=sys.stderr)
    return int(bool(found))


def _measure(machine, options, folder):
    """Returns the rows of `table`, and the shares of `faults`; says how it gets on."""
    wanted = [(name, storage) for name in options.networks for storage in STORAGES]
    wanted += [ROUNDS_TWICE_HERE] * (ROUNDS_TWICE_HERE[0] in options.networks)
    files, shares = [], {}
    for name, storage in wanted:
        print(f"exporting {name} {storage}", flush=True)
        exported = device_networks.export(name, storage, folder)
        files.append((exported.model, exported.self_test))
        on_arm = exported.report.on_arm
        shares[name, storage] = 0 if on_arm is None else on_arm.differing
    rows = {key: {} for key in wanted}
    for cpu in options.cpus:
        counts = run(machine, cpu, files)
        for key, (differing, compared) in zip(wanted, counts, strict=True):
            rows[key][cpu] = differing, compared
            print(f"{cpu}: {' '.join(key)}: {differing} of {compared} differ", flush=True)
    return rows, shares


def _options(arguments):
    lists = {"networks": list(device_networks.NETWORKS), "cpus": list(CPUS)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    home = os.environ.get("SPEQ_ARM_HOME") or pathlib.Path.home() / ".cache" / "speq_keras" / "arm"
    parser.add_argument("--home", type=pathlib.Path, default=home, help="folder of what is fetched")
    for name, known in lists.items():
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=known)
    options = parser.parse_args(arguments)
    for name, known in lists.items():
        unknown = sorted(set(getattr(options, name)) - set(known))
        if unknown:
            parser.error(f"--{name} takes {', '.join(known)}. Received: {', '.join(unknown)}.")
    options.home = options.home.expanduser().resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())

"""Whoever saves a model, and whatever happens meanwhile: the files before, or the new ones."""

import contextlib
import io
import os
import pathlib
import re
import socket

import keras
import numpy as np
import pytest
from dense_network import compiled, data, float_model, quantized_model
from fresh_process import result_of
from keras import layers

import speq_keras

# {way: (method, path, arguments)}: all that Keras has.
WAYS = {
    "file": ("save", "m.keras", {}),
    "legacy file": ("save", "m.h5", {}),
    "folder": ("save", "m", {"zipped": False}),
    "weights": ("save_weights", "m.weights.h5", {}),
    "shards": ("save_weights", "m.weights.json", {"max_shard_size": 5e-7}),
}
FILES = ["file", "legacy file", "weights", "shards"]


@pytest.fixture(scope="module")
def model():
    return quantized_model(float_model(seed=3))


@pytest.fixture(scope="module")
def other_model():
    return quantized_model(float_model(seed=4))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(model, way, path=None, **others):
    method, usual_path, arguments = WAYS[way]
    getattr(model, method)(usual_path if path is None else path, **arguments, **others)


def contents(folder):
    """{path: bytes, or where a link leads, or None for a folder} of all that is in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (
            path.readlink() if path.is_symlink() else content
        )
    return found


def weights_in(path, way):
    """The weights that Keras reads from what was written."""
    if way in ("file", "folder"):
        return keras.saving.load_model(path).get_weights()
    model = quantized_model(float_model(seed=5))
    model.load_weights(path)  # Keras loads no class of another package from a legacy file
    return model.get_weights()


def assert_holds(path, way, model):
    for found, expected in zip(weights_in(path, way), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- killed ----------------------------------------------------------------------------------

# A process that never ends saving is killed, 30 times. All processes are forks of one, since an
# import takes seconds. The number of the save is in the first and in the last weights.
KILLS = """
import json, os, pathlib, random, signal, sys, time
import keras, numpy as np
from dense_network import compiled, float_model, quantized_model

folder, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
moments = random.Random(0)
model = compiled(quantized_model(float_model(seed=3)))
other = compiled(quantized_model(float_model(seed=4)))
ends = lambda model: [model.weights[0], model.trainable_weights[-1]]
checkpoint = keras.callbacks.ModelCheckpoint(folder / "checkpoint.keras")
backup = keras.callbacks.BackupAndRestore(folder / "backup")
for callback in (checkpoint, backup):
    callback.set_model(model)
WRITERS = {
    "model.keras": lambda path: model.save(path),
    "model.weights.h5": lambda path: model.save_weights(path),
    "checkpoint.keras": lambda path: checkpoint.on_epoch_end(0, {}),
    "backup/latest.weights.h5": lambda path: backup.on_epoch_end(0, {}),
}

def write(name, number):
    for weights in ends(model):
        weights.assign(np.full(weights.shape, number))
    WRITERS[name](folder / name)

def read(path):
    if path.suffix == ".keras":
        return keras.saving.load_model(path)
    other.load_weights(path)
    return other

def kill_one(name):
    write(name, 0)
    start = time.monotonic()
    write(name, 1)
    seconds = time.monotonic() - start
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        for number in range(2, 10_000):
            os.write(writer, b".")
            write(name, number)
    os.read(reader, 1)
    time.sleep(moments.uniform(0, 2 * seconds))
    os.kill(process, signal.SIGKILL)
    ended = os.waitpid(process, 0)[1]
    os.close(reader), os.close(writer)
    found = [np.unique(weights).tolist() for weights in ends(read(folder / name))]
    return [name, os.WTERMSIG(ended), *found]

print(json.dumps([kill_one(list(WRITERS)[i % len(WRITERS)]) for i in range(kills)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_who_is_killed_while_saving_leaves_the_old_or_the_new_file(tmp_path):
    killed = result_of(KILLS, tmp_path, 30)
    assert len(killed) == 30
    for name, ended_by, first, last in killed:
        assert ended_by == 9, name
        assert len(first) == 1, name
        assert first == last, name
        assert first[0] >= 1, name


# ---- written as Keras writes ------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_files_are_those_that_keras_writes_in_place(way, tmp_path, model):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for place in (theirs, ours):
        place.mkdir()
    method, path, arguments = WAYS[way]
    getattr(keras.Model, method)(model, str(theirs / path), **arguments)
    write(model, way, str(ours / path))
    assert list(contents(ours)) == list(contents(theirs))
    assert_holds(ours / path, way, model)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_saved_is_replaced(way, folder, model, other_model):
    write(other_model, way)
    names = list(contents(folder))
    write(model, way)
    assert list(contents(folder)) == names
    assert_holds(folder / WAYS[way][1], way, model)


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize("way", WAYS)
def test_a_path_is_text_or_a_path(way, kind, tmp_path, model):
    path = tmp_path / WAYS[way][1]
    write(model, way, kind(path))
    assert path.exists()


@pytest.mark.parametrize("way", ["legacy file", "folder"])
def test_missing_folders_are_made_where_keras_makes_them(way, folder, model):
    path = pathlib.Path("a") / "b" / WAYS[way][1]
    write(model, way, path)
    assert path.exists()


def test_a_folder_keeps_what_else_is_in_it(folder, model):
    (folder / "m" / "assets").mkdir(parents=True)
    (folder / "m" / "README").write_bytes(b"mine")
    (folder / "m" / "assets" / "words").write_bytes(b"mine")
    write(model, "folder")
    found = contents(folder / "m")
    assert found["README"] == found["assets/words"] == b"mine"
    assert_holds("m", "folder", model)


@pytest.mark.parametrize("path", [".", "m/", "../m"])
def test_a_folder_goes_by_any_of_its_names(path, tmp_path, monkeypatch, model):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / ("" if path == "m/" else "m"))
    write(model, "folder", path)
    assert_holds(tmp_path / "m", "folder", model)
    assert set(contents(tmp_path)) == {
        "m",
        "m/assets",
        "m/config.json",
        "m/metadata.json",
        "m/model.weights.h5",
    }


def test_a_tilde_is_a_name_as_any_other(folder, model):
    (folder / "~").mkdir()
    model.save("~/m.keras")
    assert list(contents(folder)) == ["~", "~/m.keras"]


def test_shards_asked_for_by_the_name_of_a_weights_file_get_a_json_with_keras_warning(
    folder, model
):
    sentence = "original path: m.weights.h5 will be renamed to m.weights.json."
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        write(model, "shards", "m.weights.h5")
    assert_holds("m.weights.json", "shards", model)


def test_a_stream_is_left_to_keras(model):
    stream = io.BytesIO()
    model.save(stream, zipped=False)
    assert stream.getvalue().startswith(b"PK")


@pytest.mark.parametrize(
    ("method", "path", "arguments"),
    [
        ("save", "m.tf", {}),
        ("save", "m.keras", {"zipped": False}),
        ("save", None, {}),
        ("save", b"m.keras", {}),
        ("save", "m.keras", {"format": "keras"}),
        ("save_weights", "m.h5", {}),
        ("save_weights", "m.json", {"max_shard_size": 1}),
    ],
)
def test_what_keras_refuses_is_refused_in_its_words(method, path, arguments, folder, model):
    with pytest.raises(ValueError, match=".") as theirs:
        getattr(keras.Model, method)(model, path, **arguments)
    with pytest.raises(ValueError, match=f"^{re.escape(str(theirs.value))}$"):
        getattr(model, method)(path, **arguments)
    assert not contents(folder)


@pytest.mark.parametrize("path", ["hf://me/m", "gs://bucket/m.keras", "/gcs/bucket/m.keras"])
def test_a_path_on_another_machine_is_left_to_keras(path, model, monkeypatch):
    given = []
    monkeypatch.setattr(keras.Model, "save", lambda self, path, **arguments: given.append(path))
    model.save(path)
    assert given == [path]


# ---- asked first -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("replies", "replaced"), [("n", False), ("y", True), (["?", " Y"], True)])
def test_without_overwrite_a_file_is_replaced_after_a_yes(
    way, replies, replaced, folder, model, other_model, monkeypatch
):
    write(other_model, way)
    questions, replies = [], list(replies)
    monkeypatch.setattr("builtins.input", lambda text: (questions.append(text), replies.pop(0))[1])
    path = WAYS[way][1]
    write(model, way, overwrite=False)
    assert_holds(path, way, model if replaced else other_model)
    assert questions[0] == f"[WARNING] {path} already exists - overwrite? [y/n]"
    assert not replies


@pytest.mark.parametrize("way", WAYS)
def test_without_overwrite_a_new_file_is_written_unasked(way, folder, model):
    write(model, way, overwrite=False)
    assert_holds(WAYS[way][1], way, model)


# ---- what fails on the way -------------------------------------------------------------------


def no_space(*arguments, **others):
    raise OSError(28, "No space left on device")


def fail_at_the_second_layer(monkeypatch):
    calls, save = [], layers.Dense.save_own_variables

    def save_or_fail(self, store):
        calls.append(self)
        save(self, store) if len(calls) == 1 else no_space()

    monkeypatch.setattr(layers.Dense, "save_own_variables", save_or_fail)


# {moment: what fails}
FAILURES = {
    "description": lambda patch: patch.setattr(speq_keras.SPEQModel, "get_config", no_space),
    "weights": fail_at_the_second_layer,
    "disk": lambda patch: patch.setattr(os, "fsync", no_space),
    "name": lambda patch: patch.setattr(os, "replace", no_space),
}
FAILING = [
    *[(way, "description") for way in WAYS if WAYS[way][0] == "save"],
    *[(way, "weights") for way in WAYS if way != "legacy file"],
    *[(way, moment) for way in WAYS for moment in ("disk", "name")],
]


@pytest.mark.parametrize(("way", "moment"), FAILING)
def test_what_fails_leaves_the_old_files_and_nothing_else(
    way, moment, folder, model, other_model, monkeypatch
):
    write(other_model, way)
    before = contents(folder)
    FAILURES[moment](monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        write(model, way)
    assert contents(folder) == before


@pytest.mark.parametrize(("way", "last"), [("shards", "m.weights.json"), ("file", "m.keras")])
def test_all_is_on_the_disk_before_the_first_move_and_the_file_that_names_the_others_moves_last(
    way, last, folder, model, monkeypatch
):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (events.append(os.path.basename(b)), replace(a, b))
    )
    write(model, way)
    moved = [event for event in events if event != "fsync"]
    assert sorted(moved) == list(contents(folder))
    assert moved[-1] == last
    assert events[: len(moved)] == ["fsync"] * len(moved)


def test_training_with_a_student_and_a_teacher_is_saved_as_safely(
    folder, model, other_model, monkeypatch
):
    before_and_after = [speq_keras.Apprentice(m, float_model()) for m in (model, other_model)]
    for path, method in (("m.keras", "save"), ("m.weights.h5", "save_weights")):
        writes = [getattr(both, method) for both in before_and_after]
        writes[0](path)
        before = contents(folder)
        with monkeypatch.context() as patch:
            fail_at_the_second_layer(patch)
            with pytest.raises(OSError, match="No space left"):
                writes[1](path)
        assert contents(folder) == before


def test_callbacks_of_a_training_leave_their_files_and_nothing_else(folder, model):
    x, y = data()
    backup = keras.callbacks.BackupAndRestore("backup", delete_checkpoint=False)
    saved = keras.callbacks.ModelCheckpoint("new/{epoch}.keras")
    weights = keras.callbacks.ModelCheckpoint("best.weights.h5", save_weights_only=True)
    trained = compiled(keras.models.clone_model(model))
    trained.set_weights(model.get_weights())
    trained.fit(x, y, epochs=2, verbose=0, callbacks=[backup, saved, weights])
    assert list(contents(folder)) == [
        "backup",
        "backup/latest.weights.h5",
        "backup/training_metadata.json",
        "best.weights.h5",
        "new",
        "new/1.keras",
        "new/2.keras",
    ]
    assert_holds("new/2.keras", "file", trained)
    assert_holds("best.weights.h5", "weights", trained)


# ---- links, permissions, names ---------------------------------------------------------------


@pytest.mark.parametrize("way", FILES)
def test_a_link_is_followed(way, folder, model):
    (folder / "elsewhere").mkdir()
    target = folder / "elsewhere" / "blob"  # the format is told by the name of the link
    target.write_bytes(b"the file before")
    link = folder / WAYS[way][1]
    link.symlink_to(target)
    write(model, way)
    assert link.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["blob"]
    assert_holds(link, way, model)


def test_a_link_to_a_folder_is_followed(folder, model):
    (folder / "elsewhere").mkdir()
    (folder / "m").symlink_to("elsewhere")
    write(model, "folder")
    assert (folder / "m").is_symlink()
    assert_holds("elsewhere", "folder", model)


def test_a_link_to_a_file_that_is_not_there_yet_is_followed(folder, model):
    (folder / "m.keras").symlink_to("new")
    model.save("m.keras")
    assert (folder / "m.keras").is_symlink()
    assert list(contents(folder)) == ["m.keras", "new"]


@pytest.mark.parametrize("way", FILES)
def test_permissions_are_those_of_the_old_file_or_of_any_new_one(way, folder, model):
    path = folder / WAYS[way][1]
    mask = os.umask(0o027)
    try:
        write(model, way)
        new = path.stat().st_mode
        path.chmod(0o604)
        write(model, way)
    finally:
        os.umask(mask)
    assert (new & 0o777, path.stat().st_mode & 0o777) == (0o640, 0o604)


@contextlib.contextmanager
def no_work(monkeypatch):
    """Fails where anything of the model is read, or written to the folder."""
    before = contents(pathlib.Path())
    with monkeypatch.context() as patch:
        for method in ("save", "save_weights"):
            patch.setattr(keras.Model, method, lambda *_, **__: pytest.fail("began to work"))
        yield
    assert contents(pathlib.Path()) == before


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


# {what is there: (makes it, how the sentence goes on)}
ODD = {
    "pipe": (os.mkfifo, "This is a named pipe: name a regular file."),
    "socket": (make_socket, "This is a socket: name a regular file."),
    "device": (lambda path: os.symlink(os.devnull, path), "This is a device: name a regular file."),
    "folder": (os.mkdir, "This is a folder: name a file in it."),
    "circle": (lambda path: os.symlink(path, path), "This is a link that leads in a circle"),
    "lost": (lambda path: os.symlink("missing/m", path), "Create '.*/missing' first."),
}


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("way", FILES)
def test_what_is_no_file_is_refused_before_any_work(way, odd, by_link, folder, model, monkeypatch):
    make, sentence = ODD[odd]
    path = WAYS[way][1]
    make("odd" if by_link else path)
    if by_link:
        os.symlink("odd", path)
    rule = "^`filepath` must be a file.*Received: filepath="
    with no_work(monkeypatch), pytest.raises(ValueError, match=f"{rule}'{path}'. {sentence}"):
        write(model, way)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: pathlib.Path(path).touch(), "This is a file."),
        (os.mkfifo, "This is a file."),
        (lambda path: os.symlink("missing", path), "This is a link that leads nowhere."),
    ],
)
def test_what_is_no_folder_is_refused_before_any_work(make, sentence, folder, model, monkeypatch):
    make("m")
    rule = "`filepath` must be a folder, which need not exist yet. Received: filepath='m'. "
    with (
        no_work(monkeypatch),
        pytest.raises(ValueError, match=f"^{re.escape(rule + sentence)}$"),
    ):
        write(model, "folder")


# A file name may have 255 bytes, a path 4095.
@pytest.mark.parametrize("way", [way for way in WAYS if way != "shards"])
def test_the_longest_name_is_written(way, folder, model):
    path = WAYS[way][1].replace("m", "m" * (256 - len(WAYS[way][1])), 1)
    write(model, way, path)
    assert_holds(path, way, model)


@pytest.mark.parametrize("length", [252, 255, 300])
def test_shards_with_names_too_long_are_refused(length, folder, model, monkeypatch):
    path = "m" * (length - 13) + ".weights.json"  # a shard's name has four letters more
    with no_work(monkeypatch), pytest.raises(ValueError, match="too long for the file system"):
        write(model, "shards", path)


BAD_NAMES = {
    "too long": ("m" * 300, "The name is too long for the file system: shorten it."),
    "NUL": ("m\0", "No file can have this name: leave out NUL and invalid characters."),
    "no text": ("m\ud800", "No file can have this name: leave out NUL and invalid characters."),
    "tilde": ("~/m", "A leading `~` is not expanded: call `os.path.expanduser` on the path."),
    "missing folder": ("a/m", "Create 'a' first."),
    "folder in a file": ("file/m", "Create 'file' first."),
    "path too long": ("a/../" * 816 + "m", "The name is too long for the file system: shorten it."),
}


@pytest.mark.parametrize("bad", BAD_NAMES)
@pytest.mark.parametrize("way", ["file", "weights", "shards"])
def test_a_name_that_no_file_can_have_is_refused_before_any_work(
    way, bad, folder, model, monkeypatch
):
    (folder / "file").touch()
    name, sentence = BAD_NAMES[bad]
    if bad == "path too long":
        (folder / "a").mkdir()
    path = WAYS[way][1].replace("m", name, 1)
    shown = repr(path) if len(path) < 200 else repr(path)[:200]  # and what type it is
    received = f"`filepath` must be a file in a folder that exists. Received: filepath={shown}"
    with (
        no_work(monkeypatch),
        pytest.raises(ValueError, match=f"^{re.escape(received)}.*{re.escape(sentence)}$"),
    ):
        write(model, way, path)


@pytest.mark.parametrize(
    "name", ["it's", 'quo"te', "new\nline", "back\\slash", "\udcff", "%s {}", "größe"]
)
def test_an_odd_name_is_written(name, folder, model):
    model.save(f"{name}.keras")
    assert_holds(f"{name}.keras", "file", model)


def test_a_read_only_file_is_refused(folder, model, monkeypatch):
    (folder / "m.keras").write_bytes(b"the file before")
    access = os.access  # for root, all files can be written to
    monkeypatch.setattr(
        os, "access", lambda path, mode: "m.keras" not in str(path) and access(path, mode)
    )
    with no_work(monkeypatch), pytest.raises(ValueError, match="The file is read-only"):
        model.save("m.keras")

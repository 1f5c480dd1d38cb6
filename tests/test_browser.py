"""In a browser: files compute what they compute on the desktop, and drawn digits are read.

Needs Chromium, and `npm ci` in examples/browser.
"""

import json
import pathlib
import platform
import subprocess
import sys
import urllib.request

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import speq_keras

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = [str(ROOT / "examples" / name) for name in ("benchmarks", "browser")]
EXACT = (
    "resnet8-int8 resnet20-int8 mobilenet_v2-int4 mobilenet_v3-int8 efficientnet-int4 densenet-int8"
).split()


@pytest.fixture(scope="module", autouse=True)
def browser_and_litert_js():
    """Puts the folders of the examples on the path; skips where something is not installed."""
    sys.path[:0] = FOLDERS
    import browser

    if reason := browser.missing_reason():
        pytest.skip(reason)
    yield
    for folder in FOLDERS:
        sys.path.remove(folder)


# ---- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compare(tmp_path_factory):
    """Returns a function: {name: row of browser.py}."""
    import browser

    def run(files, build=""):
        return {
            row["name"]: row
            for row in browser.compare(files, tmp_path_factory.mktemp("files"), build=build)
        }

    return run


def test_exact_files_compute_in_a_browser_what_they_compute_on_the_desktop(compare):
    rows = compare(EXACT)
    assert list(rows) == EXACT
    assert {row["values"] for row in rows.values()} == {4 * 10}  # four examples, ten classes
    assert {name: row["differing"] for name, row in rows.items()} == dict.fromkeys(EXACT, 0)


def test_the_build_for_older_browsers_computes_the_same(compare):
    (row,) = compare(["resnet8-int8"], build="compat").values()
    assert (row["values"], row["differing"]) == (40, 0)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 rounds twice there")
def test_the_smallest_storage_is_another_network_in_a_browser(compare):
    (row,) = compare(["resnet8-smallest"]).values()
    assert row["differing"] > 0
    # As many values as the report's simulation says.
    assert row["differing"] / row["values"] == row["report"].on_arm.differing


# ---- the page --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of quickstart.py."""
    folder = tmp_path_factory.mktemp("quickstart")
    program = [sys.executable, ROOT / "examples" / "quickstart.py"]
    subprocess.run([*program, "--seeds=0", f"--out_dir={folder}"], check=True, capture_output=True)
    return folder / "speq.tflite"


@pytest.fixture(scope="module")
def chrome():
    import chromium

    with chromium.Chromium() as browser:
        yield browser


class Page:
    """The page in a browser."""

    def __init__(self, browser, server, **screen):
        self.browser = browser
        browser.screen(**{"width": 1000, "height": 800, **screen})
        loaded = "document.body?.dataset.state && document.body.dataset.state !== 'loading'"
        browser.open(f"http://127.0.0.1:{server.server_port}/", until=loaded)

    def text(self, name):
        return self.browser.evaluate(f"document.getElementById({json.dumps(name)}).textContent")

    def draw(self, *strokes, finger=False):
        """Draws strokes, lists of (x, y) from 0 to 1; returns the answer."""
        box = "document.getElementById('pad').getBoundingClientRect()"
        left, top, side = self.browser.evaluate(f"(r => [r.left, r.top, r.width])({box})")
        for stroke in strokes:
            points = [(left + x * side, top + y * side) for x, y in stroke]
            self.browser.drag(points, finger=finger)
        return self.answer()

    def answer(self):
        self.browser.wait("document.body.dataset.answered === 'yes'")
        return self.text("digit")

    def shares(self):
        """What stands beside the bars, in percent."""
        texts = self.browser.evaluate(
            "Array.from(document.querySelectorAll('#bars li span:last-child'), x => x.textContent)"
        )
        return [float(text.split()[0]) for text in texts if text]


@pytest.fixture(scope="module")
def page(model, chrome):
    """Returns a function that opens the page."""
    import serve

    with serve.listening({"/model.tflite": model}) as server:
        yield lambda **screen: Page(chrome, server, **screen)


def line(*corners, steps=8):
    """Returns points from corner to corner, as a hand moves."""
    parts = [
        np.linspace(a, b, steps, endpoint=False) for a, b in zip(corners, corners[1:], strict=False)
    ]
    return np.concatenate([*parts, [corners[-1]]]).tolist()


ONE = line((0.5, 0.15), (0.5, 0.85))
SEVEN = line((0.3, 0.2), (0.7, 0.2), (0.6, 0.5), (0.5, 0.8))


@pytest.mark.parametrize("is_phone", [False, True], ids=["mouse", "finger"])
def test_a_drawn_digit_is_read(page, is_phone):
    opened = page(width=375, height=812, is_phone=True) if is_phone else page()
    assert opened.draw(SEVEN, finger=is_phone) == "7"
    assert opened.text("sentence").startswith("This is a 7: ")


def test_the_keyboard_draws_too(page):
    opened = page()
    opened.browser.evaluate("document.getElementById('pad').focus()")
    opened.browser.press(" ", *["ArrowDown"] * 12, " ")
    assert opened.answer() == "1"
    opened.browser.press("Delete")
    assert opened.answer() == ""


def test_the_bars_are_the_softmax_of_what_the_file_computes(page, model):
    from ai_edge_litert.interpreter import Interpreter

    opened = page()
    opened.draw(SEVEN)
    counts = opened.browser.evaluate(
        f"import('./digits.js').then(m => Array.from(m.countsOf([{json.dumps(SEVEN)}])))"
    )
    interpreter = Interpreter(model_path=str(model))
    interpreter.allocate_tensors()
    image = np.float32(counts).reshape(1, 8, 8, 1) / 16
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    powers = np.exp(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    expected = 100 * powers / powers.sum()
    # One place after the point; the mouse moves by whole pixels, which shifts single counts.
    assert opened.shares() == pytest.approx(expected, abs=5)
    assert np.argmax(opened.shares()) == np.argmax(expected)


def test_undo_and_clear_take_strokes_away(page):
    opened = page()
    opened.draw(SEVEN)
    alone = opened.shares()
    opened.draw(ONE)
    assert opened.shares() != alone
    opened.browser.evaluate("document.getElementById('undo').click()")
    opened.answer()
    assert opened.shares() == alone
    opened.browser.evaluate("document.getElementById('clear').click()")
    assert opened.answer() == ""
    assert opened.shares() == []


def test_the_page_says_how_large_the_file_is_and_how_long_a_run_takes(page, model):
    opened = page()
    opened.draw(ONE)
    assert opened.text("size") == f"{model.stat().st_size / 1000:.1f} kB"
    value, unit = opened.text("time").split()
    assert float(value) > 0
    assert unit in ("µs", "ms")


def test_the_page_fits_a_phone(page):
    opened = page(width=320, height=640, is_phone=True)
    opened.draw(SEVEN, finger=True)
    assert opened.browser.evaluate("document.documentElement.scrollWidth") == 320
    assert opened.browser.evaluate("window.scrollY") == 0  # a finger draws, it does not scroll


def test_the_page_loads_nothing_from_elsewhere(page):
    opened = page()
    loaded = opened.browser.evaluate(
        "performance.getEntriesByType('resource').map(x => new URL(x.name).origin)"
    )
    assert len(loaded) > 5
    assert set(loaded) == {opened.browser.evaluate("location.origin")}


# ---- what is missing -------------------------------------------------------------------------


def test_without_a_model_the_page_says_how_to_get_one(chrome, tmp_path):
    import serve

    with serve.listening({"/model.tflite": tmp_path / "none.tflite"}) as server:
        text = Page(chrome, server).text("problem")
    assert text.startswith("There is no model: run python examples/quickstart.py")


def test_without_litert_js_the_page_says_how_to_install_it(page, chrome):
    chrome.call("Network.enable")
    chrome.call("Network.setBlockedURLs", urls=["*node_modules*"])
    try:
        text = page().text("problem")
    finally:
        chrome.call("Network.setBlockedURLs", urls=[])
    assert text == "LiteRT.js is missing: run npm ci in examples/browser and reload the page."


def test_without_webassembly_the_page_says_so(page, chrome):
    source = "delete window.WebAssembly"
    number = chrome.call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
    try:
        text = page().text("problem")
    finally:
        chrome.call("Page.removeScriptToEvaluateOnNewDocument", identifier=number)
    assert text == "This page needs WebAssembly, which this browser lacks or has turned off."


def test_the_command_serves_the_page_and_the_model(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"model")
    command = [sys.executable, ROOT / "examples" / "browser" / "serve.py", "--port=0"]
    command.append(f"--model={tmp_path / 'm.tflite'}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().split()[0]
            types = {}
            for name in (
                "",
                "page.js",
                "model.tflite",
                "node_modules/@litertjs/core/dist/index.js",
            ):
                with urllib.request.urlopen(address + name) as answer:
                    types[name] = answer.headers["Content-Type"].split(";")[0]
        finally:
            process.terminate()
    assert list(types.values()) == [
        *("text/html", "text/javascript", "application/octet-stream", "text/javascript")
    ]


def test_a_new_model_is_sent_although_the_browser_knows_an_older_one(tmp_path):
    import serve

    model = tmp_path / "m.tflite"
    with serve.listening({"/model.tflite": model}) as server:
        address = f"http://127.0.0.1:{server.server_port}/model.tflite"
        for content in (b"old", b"new"):  # within a second, which is what "Last-Modified" tells
            model.write_bytes(content)
            with urllib.request.urlopen(address) as answer:
                assert answer.read() == content
                assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": None}, "LiteRT.js does not run a model whose batch size is open: "),
        (
            {"batch_size": 2},
            "The model has to read 1 × 8 × 8 × 1 numbers and give 1 × 10. This one",
        ),
        ({"io": "uint8"}, "The model has to read and give floats: "),
    ],
)
def test_a_model_that_does_not_fit_is_told(chrome, tmp_path, change, sentence):
    import serve

    inputs = keras.Input((8, 8, 1))
    network = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    model = speq_keras.wrap(network, 4, 4, distillation=None)
    images = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 1)).astype("float32")
    model.calibrate(images, training=True, verbose=0)
    path = tmp_path / "m.tflite"
    model.export_tflite(path, **change)
    with serve.listening({"/model.tflite": path}) as server:
        assert Page(chrome, server).text("problem").startswith(sentence)


# ---- from strokes to pixels ------------------------------------------------------------------


def counts_of(strokes):
    """`countsOf` of digits.js in NumPy: 32 x 32 pixels, the 312 nearest to the lines black."""
    a = np.concatenate([stroke[:-1] if len(stroke) > 1 else stroke for stroke in strokes])
    b = np.concatenate([stroke[1:] if len(stroke) > 1 else stroke for stroke in strokes])
    low, high = np.minimum(a, b).min(axis=0), np.maximum(a, b).max(axis=0)
    width, height = high - low
    spans = np.maximum([max(width, 0.45 * height), max(height, 0.3 * width)], 1e-6)
    centres = np.stack(np.meshgrid(np.arange(32), np.arange(32)), axis=-1).reshape(-1, 1, 2) + 0.5
    pen = 5
    for _ in range(4):
        places = (np.array([20, 32]) - pen) / spans
        from_, to = ((x - (low + high) / 2) * places + 16 for x in (a, b))
        along = np.sum((centres - from_) * (to - from_), axis=-1)
        share = np.clip(along / np.maximum(np.sum((to - from_) ** 2, axis=-1), 1e-9), 0, 1)
        nearest = from_ + share[..., None] * (to - from_)
        distances = np.min(np.sum((centres - nearest) ** 2, axis=-1), axis=1)
        limit = np.sort(distances)[311]
        pen = min(2 * np.sqrt(limit), 12)
    return (distances <= limit).reshape(8, 4, 8, 4).sum(axis=(1, 3))


DRAWINGS = {
    "seven": [SEVEN],
    "two strokes": [line((0.3, 0.1), (0.25, 0.5), (0.8, 0.55)), line((0.7, 0.3), (0.68, 0.9))],
    "a thin line": [line((0.51, 0.13), (0.5, 0.87))],
    "a dash": [line((0.11, 0.5), (0.87, 0.53))],
    "a dot": [[(0.4, 0.6)]],
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_strokes_become_counts_of_black_pixels(page, name):
    strokes = DRAWINGS[name]
    found = page().browser.evaluate(
        f"import('./digits.js').then(m => Array.from(m.countsOf({json.dumps(strokes)})))"
    )
    expected = counts_of([np.array(stroke, "float64") for stroke in strokes])
    assert expected.sum() >= 312
    # Pixels at the same distance from a line to the last bit of a float64 may fall either way.
    assert np.abs(np.reshape(found, (8, 8)) - expected).sum() <= 4


def runs_of(image):
    """Returns horizontal strokes that cover a digit, in 4 x 4 blocks as many pixels as it counts.

    Of each block, those pixels are taken that are darkest in the enlarged image.
    """
    weights = np.maximum(0, 1 - np.abs((np.arange(32)[:, None] + 0.5) / 4 - 0.5 - np.arange(8)))
    weights /= weights.sum(axis=1, keepdims=True)
    dark = (weights @ image @ weights.T).reshape(8, 4, 8, 4).transpose(0, 2, 1, 3).reshape(64, 16)
    ranks = np.argsort(np.argsort(-dark, axis=1, kind="stable"), axis=1)
    black = (ranks < image.reshape(64, 1)).reshape(8, 8, 4, 4).transpose(0, 2, 1, 3)
    strokes = []
    for y, row in enumerate(black.reshape(32, 32)):
        ends = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
        for start, stop in ends.reshape(-1, 2):
            place = [(0.1 + 0.025 * (x + 0.5), 0.1 + 0.025 * (y + 0.5)) for x in (start, stop - 1)]
            strokes.append(place if stop - start > 1 else place[:1])
    return strokes


def test_digits_of_the_test_set_are_read_when_they_are_drawn(page):
    images, labels = load_digits(return_X_y=True)
    # The half that quickstart.py tests with.
    _, images, _, labels = train_test_split(
        images, labels, test_size=0.5, random_state=0, stratify=labels
    )
    images, labels = images[:30].reshape(-1, 8, 8), labels[:30]
    opened = page()
    read = []
    for image in images:
        opened.browser.evaluate("document.getElementById('clear').click()")
        read.append(int(opened.draw(*runs_of(image))))
    # As images, 98 % of them are read; drawn, they lose what the pen and the box change.
    assert np.mean(read == labels) >= 0.9

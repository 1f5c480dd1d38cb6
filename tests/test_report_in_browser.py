"""Reports in a real browser: on a phone and on a desk, light and dark. Needs Chromium."""

import importlib.util
import pathlib

import keras
import pytest

import speq_keras

_PATH = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks" / "chromium.py"
_SPEC = importlib.util.spec_from_file_location("chromium", _PATH)
chromium = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(chromium)
pytestmark = pytest.mark.skipif(chromium.find() is None, reason="Chromium is not installed")

PHONE, DESK = {"width": 375, "height": 740, "is_phone": True}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Returns the address of the report of a model with many layers and long names."""
    inputs = x = keras.Input((8,))
    for number in range(40):
        name = f"block_{number}_with_a_name_that_does_not_fit_on_a_phone"
        x = keras.layers.Dense(8, activation="relu", name=name)(x)
    model = speq_keras.wrap(keras.Model(inputs, x), 3, 3)
    path = tmp_path_factory.mktemp("pages") / "report.html"
    model.report().to_html(path)
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as browser:
        yield browser


@pytest.mark.parametrize("screen", [PHONE, DESK], ids=["phone", "desk"])
def test_a_report_is_as_wide_as_the_screen(browser, url, screen):
    browser.screen(**screen)
    browser.open(url)
    assert browser.evaluate("document.documentElement.scrollWidth") == screen["width"]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_a_report_has_the_colours_of_the_system(browser, url, is_dark):
    browser.screen(**DESK, is_dark=is_dark)
    browser.open(url)
    style = "getComputedStyle(document.querySelector('th'))"
    background, text = (
        sum(map(int, browser.evaluate(f"{style}.{name}").strip("rgba()").split(",")[:3]))
        for name in ("backgroundColor", "color")
    )
    assert (background < text) == is_dark


def test_the_header_of_a_long_table_stays_on_a_desk(browser, url):
    browser.screen(**DESK)
    browser.open(url)
    browser.evaluate("scrollTo(0, document.querySelector('table').offsetTop + 500)")
    assert browser.evaluate("document.querySelector('th').getBoundingClientRect().top") == 0


def test_the_names_of_the_layers_stay_on_a_phone(browser, url):
    browser.screen(**PHONE)
    browser.open(url)
    left = "document.querySelector('tbody td').getBoundingClientRect().left"
    before = browser.evaluate(left)
    browser.evaluate("document.querySelector('.wide').scrollLeft = 200")
    assert browser.evaluate("document.querySelector('.wide').scrollLeft") == 200
    assert browser.evaluate(left) == before
    # And leave room for the numbers.
    assert browser.evaluate("document.querySelector('tbody td').offsetWidth") < 375 / 2

"""The pictures of the examples: an axis on which curves that end close together lie apart."""

import numpy as np
import pytest
from matplotlib.figure import Figure

pytestmark = pytest.mark.usefixtures("examples_on_the_path")


def panels_with(*curves):
    """Returns axes, one for each curve."""
    drawn = Figure().subplots(1, len(curves), squeeze=False)[0]
    for axes, curve in zip(drawn, curves, strict=True):
        axes.plot(range(len(curve)), curve)
    return drawn


def test_an_axis_shows_how_far_curves_are_apart_at_their_ends():
    from curve_axis import show_differences

    drawn = panels_with([10, 40, 96, 97], [11, 80, 95, 98])
    show_differences(drawn, least=1)
    # By hand: the second halves span 95 to 98, and 15 % of 3 more on both sides.
    for axes in drawn:
        np.testing.assert_allclose(axes.get_ylim(), (94.55, 98.45))


def test_curves_that_end_in_one_point_are_not_blown_up_to_their_noise():
    from curve_axis import show_differences

    (axes,) = panels_with([50.0, 97.0, 97.0, 97.0])
    show_differences([axes], least=2)
    np.testing.assert_allclose(axes.get_ylim(), (95.7, 98.3))


@pytest.mark.parametrize("curve", [[], [np.nan, np.nan]])
def test_without_numbers_there_is_nothing_to_fit(curve):
    from curve_axis import show_differences

    (axes,) = panels_with(curve)
    before = axes.get_ylim()
    show_differences([axes], least=2)
    assert axes.get_ylim() == before

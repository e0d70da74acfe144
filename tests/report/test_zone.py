import doctest
import math

import numpy as np
import pytest

from adaptlab.report import zone
from adaptlab.report.zone import peak_rate, usable_zone

RATES = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]


def test_docstring_examples_hold():
    assert doctest.testmod(zone).failed == 0


def test_the_edges_lie_where_the_line_between_two_rates_crosses_the_threshold():
    got = usable_zone(RATES, [0.0, 0.5, 1.0, 0.8, 0.0], fraction=0.75)
    # From 0.5 to 1.0 the line passes .75 half-way; from 0.8 to 0.0 after a sixteenth.
    assert got.low == pytest.approx(10**-3.5)
    assert got.high == pytest.approx(10 ** (-2 + 1 / 16))
    assert got.width == pytest.approx(1.5 + 1 / 16)
    assert not got.censored


@pytest.mark.parametrize(
    ("gains", "ends"),
    [
        ([1.0, 0.95, 0.5, 0.1, 0.0], (True, False)),
        ([0.0, 0.1, 0.5, 0.95, 1.0], (False, True)),
        ([1.0, 1.0, 1.0, 1.0, 1.0], (True, True)),
        ([0.1, 0.5, 1.0, 0.5, 0.1], (False, False)),
    ],
)
def test_a_zone_that_reaches_the_end_of_the_grid_says_at_which_end(gains, ends):
    got = usable_zone(RATES, gains)
    assert (got.open_low, got.open_high) == ends


def test_a_usable_rate_beyond_a_gap_is_not_in_the_zone():
    got = usable_zone(RATES, [0.95, 0.2, 1.0, 0.2, 0.95])
    assert 1e-4 < got.low < got.high < 1e-2
    assert not got.censored


def test_a_diverged_run_counts_as_no_gain_however_it_ended():
    zones = [usable_zone(RATES, [0.5, 1.0, 0.95, bad, 0.0]) for bad in (0.0, -7.0, math.nan, -math.inf)]
    assert all(z == zones[0] for z in zones)
    assert zones[0].high == pytest.approx(10 ** (-3 + 0.05 / 0.95))


def test_nothing_gained_leaves_no_zone():
    got = usable_zone(RATES, [0.0, -1.0, math.nan, 0.0, 0.0])
    assert (got.width, got.censored) == (0.0, False)


def test_a_limit_on_forgetting_cuts_the_zone_where_it_is_crossed():
    gains, changes = [0.95, 0.96, 0.97, 0.98, 1.0], [0.0, 0.1, 0.2, 0.4, math.inf]
    got = usable_zone(RATES, gains, 0.9, changes, limit=0.3)
    assert (got.open_low, got.open_high) == (True, False)
    assert got.high == pytest.approx(10**-2.5)
    assert usable_zone(RATES, gains, 0.9, changes, limit=0.4).high == pytest.approx(1e-2)  # infinity is no line
    assert usable_zone(RATES, gains, 0.9, changes, limit=-1.0).width == 0.0


def test_a_tolerance_is_the_same_for_much_and_for_little_gain():
    shape = np.array([-0.4, -0.2, 0.0, -0.2, -0.4])
    zones = [usable_zone(RATES, best + shape, tolerance=0.1) for best in (1.0, 6.0)]
    assert zones[0].width == pytest.approx(zones[1].width) == pytest.approx(1.0)
    by_fraction = [usable_zone(RATES, best + shape, fraction=0.9).width for best in (1.0, 6.0)]
    assert by_fraction[0] == pytest.approx(1.0)
    assert by_fraction[1] > 3.9


def test_the_width_grows_as_the_fraction_falls():
    gains = [0.1, 0.6, 1.0, 0.7, 0.2]
    widths = [usable_zone(RATES, gains, fraction).width for fraction in (1.0, 0.9, 0.7, 0.5, 0.3)]
    assert widths[0] == 0.0
    assert np.all(np.diff(widths) > 0)


def test_the_peak_of_a_parabola_is_found_between_uneven_rates():
    rates, peak = [1e-5, 3e-5, 1e-4, 7e-4], 4.2e-5
    gains = [1 - 0.3 * math.log10(rate / peak) ** 2 for rate in rates]
    got, bound = peak_rate(rates, gains)
    assert got == pytest.approx(peak, rel=1e-9)
    assert bound == ""


@pytest.mark.parametrize(("gains", "expected"), [([3, 2, 1], (1e-5, "at most")), ([1, 2, 3], (1e-3, "at least"))])
def test_a_peak_at_the_end_of_the_grid_is_a_bound(gains, expected):
    assert peak_rate([1e-5, 1e-4, 1e-3], gains) == expected


def test_no_gain_and_one_rate_give_no_peak():
    assert math.isnan(peak_rate([1e-5, 1e-4], [0.0, -1.0])[0])
    assert peak_rate([1e-5], [1.0]) == (1e-5, "unknown")


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="got 90"):
        usable_zone(RATES, [1.0] * 5, fraction=90)
    with pytest.raises(ValueError, match="Rates must increase"):
        usable_zone(RATES[::-1], [1.0] * 5)
    with pytest.raises(ValueError, match=r"got -0\.1 nats"):
        usable_zone(RATES, [1.0] * 5, tolerance=-0.1)
    with pytest.raises(ValueError, match=r"limit of 0\.1 .* each of 5 rates"):
        usable_zone(RATES, [1.0] * 5, limit=0.1)

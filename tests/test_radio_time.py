# SPDX-License-Identifier: GPL-3.0-or-later
"""Device times and samples, and boards whose clocks disagree."""

from fractions import Fraction

import pytest
from gnuradio.dmimo import radio_time
from hypothesis import given
from hypothesis import strategies as st

RATES = (1e6, 1.92e6, 30.72e6, 61.44e6, 200e6 / 3, 245.76e6)
MHZ = Fraction(1_000_000)


@given(st.integers(0, 10**18), st.sampled_from(RATES))
def test_samples_come_back_from_their_times(sample, samp_rate):
    rate = radio_time.rate_ratio(samp_rate)
    seconds, fraction = radio_time.time_of(sample, rate)
    assert 0 <= fraction < 1
    assert abs(Fraction(seconds) + Fraction(fraction) - sample / rate) < Fraction(1, 10**15)
    assert radio_time.sample_of(seconds, fraction, rate) == sample


def test_the_rate_of_a_divided_clock_is_a_ratio():
    assert radio_time.rate_ratio(200e6 / 3) == Fraction(200_000_000, 3)
    for wrong in (0, -1e6, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="samp_rate"):
            radio_time.rate_ratio(wrong)


@pytest.mark.parametrize(("off", "refused"), [(0.009, False), (-0.009, False), (0.011, True), (-0.011, True)])
def test_times_off_the_sample_grid_are_refused(off, refused):
    time = 3, (250_000 + off) * 1e-6
    assert radio_time.position(*time, MHZ) == (3_250_000, pytest.approx(off, abs=1e-6))
    if refused:
        with pytest.raises(ValueError, match="off the sample grid"):
            radio_time.sample_of(*time, MHZ)
    else:
        assert radio_time.sample_of(*time, MHZ) == 3_250_000


def test_boards_that_agree_within_a_tick_are_not_named():
    assert radio_time.disagreeing_boards([], MHZ) == {}
    assert radio_time.disagreeing_boards([(4, 0.0), (4, 1e-8), (3, 1 - 1e-8), (4, 0.4e-6)], MHZ) == {}


@pytest.mark.parametrize(
    ("edges", "named"),
    [
        ([(4, 0.0), (5, 0.0), (4, 0.0)], {1}),
        ([(5, 0.0), (4, 0.0), (4, 0.0)], {0}),
        ([(4, 0.0), (3, 0.0)], {1}),  # nobody can tell which is right: the first one leads
        ([(4, 0.0), (4, 0.6e-6), (4, 0.0)], {1}),
        ([(4, 0.3), (4, 0.3)], {0, 1}),  # they agree with each other, but were not set at an edge
        ([(7, 0.0), (4, 1e-8), (3, 1 - 1e-8), (9, 0.5)], {0, 3}),
    ],
)
def test_boards_that_disagree_are_named(edges, named):
    assert set(radio_time.disagreeing_boards(edges, MHZ)) == named


@pytest.mark.parametrize(
    ("offsets", "named"),
    [
        ([], set()),
        ([(0, 0)], set()),
        ([(0, 0), (-1e-3, 1e-3), (-5e-3, 0)], set()),
        ([(0, 0), (0.4e-6, 2e-3), (-2e-3, -0.4e-6)], set()),  # within half a sample
        ([(0, 0), (0.6e-6, 2e-3)], {1}),  # nobody can tell which is right: the first one leads
        ([(0, 0), (-0.021, -0.02), (-1e-3, 1e-3)], {1}),
        ([(0, 0), (0.02, 0.021), (0.019, 0.0205)], {0}),
    ],
)
def test_boards_that_are_apart_between_edges_are_named(offsets, named):
    assert set(radio_time.boards_apart(offsets, MHZ)) == named


def test_how_far_a_board_is_apart_is_said():
    assert "-0.020500 s off" in radio_time.boards_apart([(0, 0), (-0.021, -0.02), (-1e-3, 1e-3)], MHZ)[1]


@pytest.mark.parametrize(
    ("edges", "second"),
    [([(4, 0.0)], 4), ([(4, 0.0), (5, 0.0), (5, 1e-8)], 5), ([(3, 1 - 1e-8), (4, 0.0), (9, 0.0)], 4)],
)
def test_common_second_is_that_of_most_boards(edges, second):
    assert radio_time.common_second(edges) == second


def test_what_a_wrong_board_reads_is_said():
    said = radio_time.disagreeing_boards([(4, 0.0), (4, 0.0), (5, 0.0), (4, 1e-6)], MHZ)
    assert "5 s" in said[2]
    assert "4 s" in said[2]
    assert "4.000001" in said[3]

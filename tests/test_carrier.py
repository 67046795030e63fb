# SPDX-License-Identifier: GPL-3.0-or-later
from fractions import Fraction

import numpy as np
import pytest
from gnuradio.dmimo.core.carrier import CarrierCorrection

RATE = 1e6


def exact(frequency_hz, samples, rate=RATE):
    """Phasors of a constant frequency since sample 0, from rational arithmetic."""
    cycles = [float(Fraction(frequency_hz) * n / Fraction(rate) % 1) for n in samples]
    return np.exp(2j * np.pi * np.array(cycles))


@pytest.mark.parametrize("start", [0, 12_345, 10**9 + 7, 10**12 - 300, -(10**12)])
@pytest.mark.parametrize("frequency_hz", [10.0, -1234.5678, 0.1, 499_999.9, -500_000.0, 7.3e6])
def test_turn_equals_rational_arithmetic_far_from_the_epoch(start, frequency_hz):
    turn = CarrierCorrection(RATE, frequency_hz).transmit_turn(start, 300)
    assert turn.dtype == np.complex128
    np.testing.assert_allclose(turn, exact(frequency_hz, range(start, start + 300)), rtol=0, atol=1e-13)


def test_turn_of_a_long_burst_is_as_exact_at_its_end():
    turn = CarrierCorrection(RATE / 3, -321.987).receive_turn(10**12, 2_000_001)[-5:]
    wanted = exact(-321.987, range(10**12 + 1_999_996, 10**12 + 2_000_001), RATE / 3).conj()
    np.testing.assert_allclose(turn, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num", [0, 1, 63, 64, 65, 1000])
def test_turn_does_not_depend_on_how_it_is_cut(num):
    correction = CarrierCorrection(RATE, 37.0, 0.4)
    correction.retune(-51.0, 10**10 + 500)
    whole = correction.transmit_turn(10**10, 2000)
    cut = np.concatenate([correction.transmit_turn(10**10, num), correction.transmit_turn(10**10 + num, 2000 - num)])
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-13)
    assert correction.transmit_turn(5, num).shape == (num,)


def test_retuning_goes_on_without_a_jump_and_only_from_its_sample_on():
    correction = CarrierCorrection(RATE, 100.0)
    before = correction.transmit_turn(0, 2000)
    correction.retune(-250.0, 1000)
    turn = correction.transmit_turn(0, 2000)
    np.testing.assert_array_equal(turn[:1000], before[:1000])
    assert turn[1000] == pytest.approx(before[1000], abs=1e-13)
    np.testing.assert_allclose(turn[1000:], before[1000] * exact(-250.0, range(1000)), atol=1e-13)
    assert (correction.frequency_hz, correction.changed_at) == (-250.0, 1000)


def test_first_change_may_lie_before_the_epoch():
    correction = CarrierCorrection(RATE, 100.0)
    before = correction.transmit_turn(-3000, 1001)
    correction.retune(5.0, -2000)
    turn = correction.transmit_turn(-3000, 3000)
    np.testing.assert_allclose(turn[:1001], before, atol=1e-13)
    np.testing.assert_allclose(turn[1000:], before[1000] * exact(5.0, range(2000)), atol=1e-13)


def test_ten_thousand_changes_leave_the_phase_exact():
    rng = np.random.default_rng(1)
    correction, wanted, at = CarrierCorrection(RATE), Fraction(0), 0
    for frequency_hz, gap in zip(rng.normal(0, 300, 10_000), rng.integers(1, 10**7, 10_000), strict=True):
        wanted += Fraction(correction.frequency_hz) * int(gap) / Fraction(RATE)
        at += int(gap)
        correction.retune(frequency_hz, at)
    assert correction.theta(at) == pytest.approx((float(wanted % 1) + 0.5) % 1 * 2 * np.pi - np.pi, abs=1e-12)
    with pytest.raises(ValueError, match="forgotten"):
        correction.transmit_turn(5, 1)


def test_phase_acts_on_transmit_only():
    correction = CarrierCorrection(RATE, 20.0)
    plain, received = correction.transmit_turn(70, 40), correction.receive_turn(70, 40)
    np.testing.assert_allclose(received, plain.conj(), atol=1e-15)
    correction.advance(3.0)
    correction.advance(1.0)
    assert correction.phase_rad == pytest.approx(4.0 - 2 * np.pi)
    np.testing.assert_allclose(correction.transmit_turn(70, 40), plain * np.exp(4j), atol=1e-14)
    np.testing.assert_array_equal(correction.receive_turn(70, 40), received)


def test_phase_from_a_sample_on_leaves_what_lies_before():
    correction = CarrierCorrection(RATE, 20.0, 0.25)
    before = correction.transmit_turn(0, 100)
    correction.advance(-1.0, 60)
    turn = correction.transmit_turn(0, 100)
    np.testing.assert_allclose(turn[:60], before[:60], atol=1e-14)
    np.testing.assert_allclose(turn[60:], before[60:] * np.exp(-1j), atol=1e-14)


def ratio(times_s, offset_hz, transmit, receive):
    """c of node B over that of A, from both directions at times in seconds; theta_A - theta_B = 2 pi offset t + 0.7.

    B's samples are turned by the corrections given, A's by none.
    """
    rng = np.random.default_rng(4)
    t_a, r_a, t_b, r_b, g = rng.normal(size=(5, 2)) @ [1, 1j]
    samples = np.round(np.asarray(times_s) * RATE).astype(int)
    theta_a = 2 * np.pi * 400.0 * samples / RATE + 0.2
    theta_b = theta_a - 2 * np.pi * offset_hz * samples / RATE - 0.7
    a_to_b = r_b * np.exp(-1j * theta_b) * g * t_a * np.exp(1j * theta_a) * receive
    b_to_a = r_a * np.exp(-1j * theta_a) * g * t_b * np.exp(1j * theta_b) * transmit
    return b_to_a / a_to_b


def test_correcting_both_directions_keeps_the_calibration_and_transmit_alone_turns_it_36_degrees_in_10_ms():
    times = np.arange(0, 11) * 1e-3
    correction = CarrierCorrection(RATE, 10.0)
    transmit = np.array([correction.transmit_turn(round(t * RATE), 1)[0] for t in times])
    receive = np.array([correction.receive_turn(round(t * RATE), 1)[0] for t in times])

    def drift_deg(*turns):
        measured = ratio(times, 10.0, *turns)
        return np.degrees(np.unwrap(np.angle(measured / measured[0])))

    np.testing.assert_allclose(drift_deg(transmit, receive), 0, atol=1e-9)
    np.testing.assert_allclose(drift_deg(transmit, 1), -3.6 * np.arange(11), atol=1e-9)
    np.testing.assert_allclose(drift_deg(1, 1), -7.2 * np.arange(11), atol=1e-9)
    np.testing.assert_allclose(drift_deg(transmit.conj(), receive.conj()), -14.4 * np.arange(11), atol=1e-9)


@pytest.mark.parametrize("samp_rate", [0.0, -1.0, float("nan"), float("inf")])
def test_sample_rate_must_be_positive(samp_rate):
    with pytest.raises(ValueError, match="samp_rate"):
        CarrierCorrection(samp_rate)


def test_bad_values_are_refused_and_change_nothing():
    correction = CarrierCorrection(RATE, 5.0)
    correction.retune(6.0, 1000)
    with pytest.raises(ValueError, match="frequency_hz = nan"):
        correction.retune(float("nan"), 2000)
    with pytest.raises(ValueError, match="phase_rad = inf"):
        correction.advance(float("inf"))
    with pytest.raises(ValueError, match="at_sample = 999"):
        correction.retune(7.0, 999)
    with pytest.raises(TypeError):
        correction.retune(7.0, 2000.0)
    with pytest.raises(ValueError, match="num = -1"):
        correction.transmit_turn(0, -1)
    assert (correction.frequency_hz, correction.phase_rad, correction.changed_at) == (6.0, 0.0, 1000)

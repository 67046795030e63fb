# SPDX-License-Identifier: GPL-3.0-or-later
"""Gains, panels and converter of the simulated hardware."""

import numpy as np
import pytest
from gnuradio.dmimo.simulation.hardware import Panel, draw_gains, quantise


def test_gain_magnitudes_are_log_normal_and_phases_uniform():
    gains = draw_gains(np.random.default_rng(1), 20000, std_db=2.0)
    level_db = 20 * np.log10(np.abs(gains))
    assert abs(level_db.std() - 2.0) < 4 * 2.0 / np.sqrt(2 * 20000)
    assert abs(level_db.mean()) < 4 * 2.0 / np.sqrt(20000)
    for order in (1, 2):
        assert abs(np.mean(np.exp(1j * order * np.angle(gains)))) < 4 / np.sqrt(20000)


def test_phase_mode_does_not_change_magnitudes():
    random, zero = (draw_gains(np.random.default_rng(1), 8, phase=p, std_db=1.0) for p in ("random", "zero"))
    np.testing.assert_allclose(np.abs(random), zero, rtol=1e-14)
    assert np.all(np.angle(zero) == 0.0)


@pytest.mark.parametrize("arguments", [{"phase": "odd"}, {"std_db": -1.0}])
def test_gains_refuse_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        draw_gains(np.random.default_rng(1), 2, **arguments)


@pytest.mark.parametrize("codebook", [None, np.ones((2, 3)), np.eye(3)[:, :2], 2 * np.eye(4)])
def test_panel_refuses_a_codebook_that_does_not_fit(codebook):
    with pytest.raises(ValueError, match="codebook"):
        Panel(4, codebook)


def test_default_panel_is_one_antenna_with_one_beam():
    assert Panel().num_beams == 1
    assert Panel().codebook == 1.0


def test_converter_keeps_single_precision():
    assert quantise(np.ones(4, dtype=np.complex64), 8, 2.0).dtype == np.complex64


def test_converter_error_is_at_most_half_a_step_and_uniform():
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.9, 0.9, 20000) + 1j * rng.uniform(-0.9, 0.9, 20000)
    step = 2.0 / 2**6
    error = quantise(x, 6, 1.0) - x
    assert max(np.abs(error.real).max(), np.abs(error.imag).max()) <= step / 2 + 1e-12
    variance, expected = np.mean(np.abs(error) ** 2), step**2 / 6
    assert abs(variance / expected - 1) < 4 * np.sqrt(0.4 / 20000)  # E e^4 / (E e^2)^2 - 1 = 4/5 per part


def test_converter_clips_and_keeps_zero():
    x = np.array([0.0, 5.0 - 5.0j, -5.0 + 5.0j])
    np.testing.assert_allclose(quantise(x, 4, 1.0), [0.0, 0.875 - 1.0j, -1.0 + 0.875j])


@pytest.mark.parametrize(("bits", "full_scale"), [(0, 1.0), (8, 0.0)])
def test_converter_refuses_bad_arguments(bits, full_scale):
    with pytest.raises(ValueError, match="bits"):
        quantise(np.zeros(1, complex), bits, full_scale)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of amplifiers: as identified, and true distortions against closed forms."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from gnuradio.dmimo import records
from gnuradio.dmimo import reports_linearization as reports
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.simulation.amplifiers import Amplifiers
from scipy.special import gamma, gammainc

NUM_PILOTS = 200
NUMBERS = ("predicted_std", "reach", "distortion_without_db", "distortion_with_db", "mismatch_db", "clipped_share")


def noise(rng, shape, variance=1.0):
    return np.sqrt(variance / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def identify(true, *, order=3, memory_depth=1, variance=1e-30, peak_db=12.0, silent=(), seed=1):
    """Identification over random gains of about 1, from pilots up to `peak_db` above unit power."""
    rng = np.random.default_rng(seed)
    peak, count = 10 ** (peak_db / 20), true.num_ports
    pilots = dpd.design_pilots(NUM_PILOTS, peak=peak, backoff_db=peak_db, rng=rng)
    gains = noise(rng, (count, count))
    gains[:, list(silent)] = 0.0
    past = np.concatenate([np.zeros(true.num_taps - 1), pilots])
    y = gains[..., None] * true(np.broadcast_to(past, (count, past.size)).astype(complex))
    y += noise(rng, y.shape, variance)
    statistics = dpd.pilot_statistics(y, pilots, order=order, memory_depth=memory_depth)
    return dpd.identify_amplifiers(statistics, amplitudes=dpd.data_amplitudes(64, peak=peak, backoff_db=peak_db))


def names(count):
    return [f"ap1:{port}" for port in range(count)]


def third_order(kappa, memory=(1.0,), saturation=np.inf):
    kappa = np.asarray(kappa)
    gains = np.stack([np.ones(kappa.shape), kappa], axis=-1)
    return Amplifiers(gains[:, None] * np.asarray(memory)[:, None], saturation)


def third_order_reach(kappa, peak):
    """Output where u |1 + kappa u^2| has its peak, or at the largest pilot: 3 |kappa|^2 s^2 + 4 Re(kappa) s + 1 = 0."""
    under = 4 * kappa.real**2 - 3 * np.abs(kappa) ** 2
    s = (-2 * kappa.real - np.sqrt(np.maximum(under, 0.0))) / (3 * np.abs(kappa) ** 2)
    s = np.where((under > 0) & (s > 0), np.minimum(s, peak**2), peak**2)
    return np.sqrt(s) * np.abs(1 + kappa * s)


KAPPA = 0.004 * np.exp(2j * np.pi * np.arange(6) / 6)


@pytest.mark.parametrize("memory", [(1.0,), (1.0, 0.2 - 0.1j)])
def test_true_distortion_of_gaussian_data_is_that_of_bussgang(memory):
    # E|x|^6 - |E|x|^4|^2 / E|x|^2 = 6 - 4 for Gaussian x of unit power, the same again through each tap of the memory.
    # Expanding amplifiers have no peak, and at 12 dB one of 7.6 million samples is beyond the pilots.
    kappa = 0.004 * np.exp(2j * np.pi * np.linspace(-0.24, 0.24, 6))
    true = third_order(kappa, memory)
    section = reports.amplifiers_section(identify(true, memory_depth=len(memory)), names(6), true)
    expected = 10 * np.log10(2 * np.abs(kappa) ** 2 * np.sum(np.abs(memory) ** 2))
    np.testing.assert_allclose(section["true_distortion_without_db"], expected, atol=0.06 if len(memory) == 1 else 0.3)
    assert np.all(section["true_distortion_with_db"] < -200)


def test_predicted_distortions_are_those_of_the_truth():
    rng = np.random.default_rng(2)
    true = third_order(-0.03 + 0.02j + noise(rng, 40, 1e-5))
    with_ = []
    for seed in range(6):
        found = identify(true, variance=1e-2, seed=seed, peak_db=10.0)
        assert not found.refused.any()
        section = reports.amplifiers_section(found, names(40), true)
        with_.append(10 ** ((section["true_distortion_with_db"] - section["distortion_with_db"]) / 10))
    # One complex coefficient each: exponential, so that a mean of 240 has a standard error of 6.5 %.
    assert np.mean(with_) == pytest.approx(1.0, abs=4 / np.sqrt(240))


def test_true_distortion_is_the_integral_over_the_invertible_range():
    # Two of these clip so much that they are refused: they are judged over the same range.
    kappa = -0.06 + 0.02j + KAPPA
    found = identify(third_order(kappa), peak_db=10.0)
    section = reports.amplifiers_section(found, names(6), third_order(kappa))
    assert section["flags"]["refused"] == ["ap1:3", "ap1:4"]
    reach = third_order_reach(kappa, np.sqrt(10))
    assert np.all((reach > 1.2) & (reach < 2.5))
    # Moments of the power s = |x|^2, which is exponential up to the reach: s^k from 1 to 3.
    first, second, third = (gamma(k + 1) * gammainc(k + 1, reach**2) for k in (1, 2, 3))
    expected = np.abs(kappa) ** 2 * (third - second**2 / first) / first
    # One of 4096 amplitudes lies on either side of the reach.
    np.testing.assert_allclose(section["true_distortion_without_db"], 10 * np.log10(expected), atol=0.02)


def test_truth_of_a_refused_port_is_the_same_with_and_without():
    true = third_order(KAPPA)
    section = reports.amplifiers_section(identify(true, variance=0.3), names(6), true)
    refused = np.isin(names(6), section["flags"]["refused"])
    assert refused.any()
    np.testing.assert_array_equal(section["true_distortion_with_db"][refused],
                                  section["true_distortion_without_db"][refused])
    assert np.all(np.isinf(section["reach"][refused]))


def test_what_saturates_below_the_pilots_keeps_distortion():
    true, saturated = third_order(KAPPA), third_order(KAPPA, saturation=[10.0] * 5 + [1.5])
    found = identify(true)
    with_ = reports.amplifiers_section(found, names(6), saturated)["true_distortion_with_db"]
    assert np.all(with_[:5] < -200)
    # Clipping of Gaussian data at 3.5 dB above its mean power.
    assert -25 < with_[5] < -15


def test_linear_memory_is_no_distortion():
    true = third_order(np.zeros(4), (1.0, 0.3j, -0.1))
    section = reports.amplifiers_section(identify(true, memory_depth=3), names(4), true)
    # -inf but for rounding.
    assert not np.any(section["true_distortion_without_db"] > -200)


def test_memory_that_is_not_modelled_remains():
    true = third_order(np.full(6, -0.03 + 0.02j), (1.0, 0.2j))
    ignored = reports.amplifiers_section(identify(true), names(6), true)
    modelled = reports.amplifiers_section(identify(true, memory_depth=2), names(6), true)
    assert np.all(modelled["true_distortion_with_db"] < -150)
    assert np.all(ignored["true_distortion_with_db"] > -60)
    np.testing.assert_allclose(modelled["true_coefficients"], modelled["coefficients"], atol=1e-9)
    assert modelled["coefficients"].shape == (6, 2, 2)
    assert modelled["predicted_std"].shape == (6, 3)
    assert modelled["memory_depth"] == 2
    assert np.isnan(modelled["distortion_with_db"]).all()


def test_section_holds_what_was_identified():
    true = third_order(-0.03 + 0.02j + KAPPA)
    found = identify(true, variance=1e-4, peak_db=10.0, silent=(2,))
    section = reports.amplifiers_section(found, names(6), true)
    assert (section["order"], section["memory_depth"]) == (3, 1)
    assert section["max_amplitude"] == pytest.approx(np.sqrt(10))
    np.testing.assert_array_equal(section["coefficients"], found.coefficients)
    np.testing.assert_allclose(section["predicted_std"] ** 2, found.covariance[:, 0].real)
    assert section["flags"]["unheard"] == ["ap1:2"]
    assert section["flags"]["refused"] == ["ap1:2"]
    assert section["deaf"] == []
    others = np.arange(6) != 2
    np.testing.assert_allclose(section["reach"][others],
                               third_order_reach(found.coefficients[others, 1], np.sqrt(10)), rtol=1e-9)
    np.testing.assert_allclose(section["true_coefficients"], true.coefficients[:, 0])
    without_truth = reports.amplifiers_section(found, names(6))
    assert set(section) - set(without_truth) == {
        "true_coefficients", "true_saturation", "true_distortion_without_db", "true_distortion_with_db"}


def test_flags_name_the_ports():
    true = third_order(KAPPA)
    found = identify(true)
    for name in ("mismatch_limited", "receivers_disagree", "unexplained", "saturated"):
        getattr(found, name)[:] = [True, False, False, True, False, False]
        assert reports.amplifiers_section(found, names(6))["flags"][name] == ["ap1:0", "ap1:3"]
        getattr(found, name)[:] = False
    found.deaf[4] = True
    assert reports.amplifiers_section(found, names(6))["deaf"] == ["ap1:4"]


def test_missing_numbers_become_null(tmp_path):
    true = third_order(KAPPA)
    section = reports.amplifiers_section(identify(true, silent=(2,)), names(6), true)
    records.write_json(tmp_path / "report.json", {"amplifiers": section})
    written = json.loads((tmp_path / "report.json").read_text())["amplifiers"]
    assert written["predicted_std"][2] == [None]
    assert written["true_saturation"] == [None] * 6
    for name in NUMBERS[1:]:
        if name not in ("mismatch_db", "clipped_share"):
            assert written[name][2] is None, name
            assert isinstance(written[name][1], float), name
    assert written["coefficients"][2] == [[1.0, 0.0], [0.0, 0.0]]


def test_joined_identification_is_that_of_each_access_point_in_turn():
    first, second = third_order(KAPPA[:4]), third_order(KAPPA[3:])
    parts = [identify(first, variance=1e-6), identify(second, variance=1e-6, seed=2)]
    joined = dpd.Identification.joined(parts)
    for item in fields(dpd.Identification):
        if item.name != "max_amplitude":
            value = getattr(joined, item.name)
            np.testing.assert_array_equal(value[:4], getattr(parts[0], item.name), err_msg=item.name)
            np.testing.assert_array_equal(value[4:], getattr(parts[1], item.name), err_msg=item.name)
    section = reports.amplifiers_section(joined, [*names(4), "ap2:0", "ap2:1", "ap2:2"])
    assert section["num_receivers"].tolist() == [3, 3, 3, 3, 2, 2, 2]
    for wrong in ([], [parts[0], replace(parts[1], max_amplitude=1.0)]):
        with pytest.raises(ValueError, match="largest pilots"):
            dpd.Identification.joined(wrong)


def test_numbers_of_ports_that_do_not_fit_are_refused():
    true = third_order(KAPPA)
    found = identify(true)
    with pytest.raises(ValueError, match="ports has 5 names"):
        reports.amplifiers_section(found, names(5))
    with pytest.raises(ValueError, match="true has 3 amplifiers"):
        reports.amplifiers_section(found, names(6), third_order(KAPPA[:3]))

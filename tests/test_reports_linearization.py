# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of amplifiers: as identified, and true distortions against closed forms."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from gnuradio.dmimo import records, testbed
from gnuradio.dmimo import reports as whole_reports
from gnuradio.dmimo import reports_linearization as reports
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.protocols.bidirectional_estimate import SideCalibration
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL, Amplifiers
from scipy.special import gamma, gammainc

NUM_PILOTS = 200
NUMBERS = ("predicted_std", "reach", "distortion_without_db", "distortion_with_db", "predicted_db", "predistorted_db",
           "mismatch_db", "clipping_db", "clipped_share")


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
    assert np.all(modelled["distortion_with_db"] < -150)


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
        if name not in ("mismatch_db", "clipping_db", "clipped_share"):
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


# -- what is predicted ------------------------------------------------------------------------------------------------


def test_prediction_is_the_power_sum_of_its_parts():
    found = identify(third_order(-0.04 + 0.02j + KAPPA), variance=1e-4, peak_db=10.0)
    found = replace(found, mismatch=np.array([0.0, 1e-3, 1e-4, 0.0, 1e-2, 0.0]))
    section = reports.amplifiers_section(found, names(6))
    refused = np.isin(names(6), section["flags"]["refused"])
    assert np.count_nonzero(~refused) > 0
    errors, mismatch, clipping = (np.where(np.isfinite(section[key]), 10 ** (section[key] / 10), 0.0)
                                  for key in ("distortion_with_db", "mismatch_db", "clipping_db"))
    inside = errors + mismatch
    np.testing.assert_allclose(section["predistorted_db"][~refused], 10 * np.log10(inside)[~refused])
    np.testing.assert_allclose(section["predicted_db"][~refused], 10 * np.log10(inside + clipping)[~refused])
    assert np.all(section["predicted_db"][1] > -30)


def test_ports_that_stay_as_they_are_keep_their_distortion_and_silent_ones_have_none():
    found = identify(third_order(KAPPA), variance=0.3, silent=(2,))
    section = reports.amplifiers_section(found, names(6))
    refused = np.isin(names(6), section["flags"]["refused"])
    assert refused[2]
    assert np.isnan(section["predicted_db"][2])
    heard = refused & (np.arange(6) != 2)
    assert heard.any()
    np.testing.assert_array_equal(section["predicted_db"][heard], section["distortion_without_db"][heard])
    assert np.isnan(section["predistorted_db"][refused]).all()


def test_prediction_is_near_the_truth_where_the_order_is_too_low():
    """Order 3 on GaN: -80 dB by the errors of the coefficients alone; clipping cannot be seen inside the range."""
    gains = np.asarray(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0]
    drive = 10 ** (-12 / 20)
    true = Amplifiers(np.tile(gains * drive ** (2 * np.arange(gains.size)), (6, 1))[:, None], 1 / drive)
    found = identify(true, variance=1e-6, peak_db=11.0)
    section = reports.amplifiers_section(found, names(6), true)
    assert section["flags"]["mismatch_limited"] == names(6)
    assert np.all(section["distortion_with_db"] < section["true_distortion_with_db"] - 20)
    np.testing.assert_allclose(section["predicted_db"], section["true_distortion_with_db"], atol=4)


# -- ports that receivers could not take ------------------------------------------------------------------------------


def test_ports_whose_receivers_saturated_are_not_called_unheard_or_deaf():
    found = identify(third_order(KAPPA), silent=(4,))
    found.heard[[1, 4]] = False
    found.saturated[1] = True
    section = reports.amplifiers_section(found, names(6))
    assert section["flags"]["unheard"] == ["ap1:4"]
    assert section["flags"]["saturated"] == ["ap1:1"]
    # Port 2 hears nobody: is it dead? Port 5 of the second access point is saturated by the only other one.
    found.deaf[[2, 5]] = True
    found.saturated[:] = [False, False, False, False, True, False]
    ports = [*names(4), "ap2:0", "ap2:1"]
    assert reports.amplifiers_section(found, ports)["deaf"] == ["ap1:2"]
    found.saturated[:] = [True, True, False, True, True, True]
    assert reports.amplifiers_section(found, ports)["deaf"] == []


# -- doubts, gains, and what a whole report says ----------------------------------------------------------------------

BED = """
version: 1
seed: 1
samp_rate: 1.0e+6
nodes:
  - {name: ap1, num_ports: 3, array: {rows: 1, columns: 3}, hardware: {amplifier: {compression: [-0.03, 0.02]}}}
  - {name: ap2, num_ports: 3, array: {rows: 1, columns: 3}, hardware: {amplifier: {compression: [-0.03, 0.02]}}}
  - {name: ue1, kind: ue}
propagation: {coupling: {perturbation_db: -10}}
noise: {snr_db: 50}
slots: {slot_samples: 1024, pilot_samples: 128, num_subcarriers: 36, num_subbands: 1}
verification: {repeats: 2, random_starts: 4}
mutual_coupling: {num_pilots: 100}
linearity: {repeats: 4, power_db: -3}
"""
PORTS = ["ap1:0", "ap1:1", "ap1:2", "ap2:0", "ap2:1", "ap2:2"]


def assembly(protocol="linearize", text=BED):
    return Assembly(testbed.parse(text), protocol=protocol)


def verified(coherent_db, ideal_db, powers_db=(0.0, 0.0, 0.0), doubts=()):
    return SimpleNamespace(report={"coherent_gain_db": coherent_db, "ideal_gain_db": ideal_db,
                                   "port_power_db": list(powers_db), "doubts": list(doubts)})


def treatment(power_db=0.0, evm_db=-30.0, aclr_db=40.0, std_db=0.3, clips=None):
    return {"power_db": power_db, "evm_db": evm_db, "evm_std_db": std_db, "aclr_db": aclr_db, "aclr_std_db": std_db,
            "clips": clips}


def heard(ap1=None, ap2=None):
    """Report of the linearity, nothing amiss but what is said."""
    same = {"before": treatment(), "calibrated": treatment(), "after": treatment()}
    return SimpleNamespace(report={"frequencies_hz": [0.0], "access_points": {"ap1": same | (ap1 or {}),
                                                                              "ap2": same | (ap2 or {})}})


def linearizer(found=None, excluded=(), doubts=()):
    """A collector that has identified and calibrated both access points."""
    found = identify(third_order(KAPPA), variance=1e-6) if found is None else found
    c = np.where(np.isin(np.arange(3), excluded), np.nan, 1.0 + 0j)
    calibration = SideCalibration(c=c, delay_s=np.zeros(3), frequency_hz=np.zeros(3), covariance=np.eye(3) * 1e-4,
                                  phase_std_rad=np.full(3, 0.01), reference_time=0)
    return SimpleNamespace(identifications={"ap1": found}, identification=found, doubts=list(doubts),
                           calibrations={"ap1": calibration, "ap2": replace(calibration, c=np.ones(3, complex))},
                           hubs={"ap1": 1, "ap2": 2})


def content(member=None, protocol="linearize", **collectors):
    found = {"linearizer": member or linearizer(), "ap1_verifier": verified(4.0, 4.1),
             "ap2_verifier": verified(4.2, 4.3), "linearity": heard()}
    return reports.content(assembly(protocol), None, found | collectors)


def test_nothing_amiss_leaves_no_doubts():
    assert content()["doubts"] == []


@pytest.mark.parametrize("worst", ["ap1", "ap2"])
def test_gains_at_the_top_are_those_of_the_access_point_that_loses_most(worst):
    found = content(**{f"{worst}_verifier": verified(2.0, 4.0)})
    assert (found["coherent_gain_db"], found["ideal_gain_db"]) == (2.0, 4.0)


def test_coherent_and_ideal_gain_of_the_linearity_are_over_the_ports_without_phases():
    """Port powers 4, 1 and 9 at full power, sent 3 dB below: in phase 36, over 14."""
    powers_db = 10 * np.log10([4.0, 1.0, 9.0])
    found = content(linearity=heard({"after": treatment(power_db=10 * np.log10(30.0) - 3.0)}),
                    ap1_verifier=verified(4.0, 4.1, powers_db))
    after, before = (found["linearity"]["access_points"]["ap1"][name] for name in ("after", "before"))
    assert after["coherent_gain_db"] == pytest.approx(10 * np.log10(30 / 14))
    assert before["coherent_gain_db"] == pytest.approx(3.0 - 10 * np.log10(14))
    assert after["ideal_gain_db"] == before["ideal_gain_db"] == pytest.approx(10 * np.log10(36 / 14))


@pytest.mark.parametrize("silent_db", [None, -60.0])
def test_excluded_ports_have_no_part_in_the_ideal_gain(silent_db):
    found = content(linearizer(excluded=(1,)), ap1_verifier=verified(4.0, 4.1, (0.0, silent_db, 0.0)))
    told = found["linearity"]["access_points"]
    assert told["ap1"]["after"]["ideal_gain_db"] == pytest.approx(10 * np.log10(2), abs=1e-12)
    assert told["ap2"]["after"]["ideal_gain_db"] == pytest.approx(10 * np.log10(3), abs=1e-12)
    assert found["doubts"] == ["1 of 6 ports cannot be calibrated and stay silent in joint transmissions: ap1:1"]


def test_access_point_that_predistortion_makes_worse_is_a_doubt():
    """Standard errors of 0.3 dB: of the difference 0.42, twice that 0.85."""
    def doubts(**after):
        return content(linearity=heard(ap2={"after": treatment(**after)}))["doubts"]

    assert doubts(evm_db=-29.2) == doubts(aclr_db=39.2) == doubts(evm_db=-40.0, aclr_db=60.0) == []
    assert doubts(evm_db=-29.1) == ["ap2: predistortion makes it worse: EVM -30.0 dB before, -29.1 dB after"]
    assert doubts(evm_db=-28.0, aclr_db=37.5, clips=188) == [
        "ap2: predistortion makes it worse: EVM -30.0 dB before, -28.0 dB after; ACLR 40.0 dB before, 37.5 dB after "
        "(188 samples were clipped: lower linearity.power_db, or raise mutual_coupling.peak_db)"]
    # Noise hides one of the two, so that they do not compare.
    assert doubts(evm_db=None, aclr_db=None, std_db=None) == []
    assert doubts(evm_db=-28.0, std_db=None) == []


@pytest.mark.parametrize(("flag", "words"), [
    ("mismatch_limited", "beyond order 3, order too low: raise mutual_coupling.order, or lower peak_db"),
    ("unexplained", "explains: memory (memory_depth), an order that is too low, or pilots that are smeared"),
    ("receivers_disagree", "different receivers"), ("refused", "not predistorted")])
@pytest.mark.parametrize("protocol", ["linearize", "sweep"])
def test_flagged_amplifiers_are_doubts_of_every_run(flag, words, protocol):
    found = identify(third_order(KAPPA), variance=1e-6)
    getattr(found, flag)[[0, 4]] = True
    (doubt,) = content(linearizer(found), protocol)["doubts"]
    assert doubt.startswith("2 of 6 ports ")
    assert words in doubt
    assert doubt.endswith(": ap1:0, ap2:1")


def test_predistorted_ports_that_clip_much_are_a_doubt():
    found = identify(third_order(KAPPA), variance=1e-6)
    found.refused[:] = [False, False, False, True, False, False]
    found.clipped_share[:] = [0.0, 0.0101, 0.01, 0.5, np.nan, 0.0]
    what = ("of data of unit power: more back-off, or a higher peak_db where pilots end below what the amplifier can "
            "reach")
    assert content(linearizer(found))["doubts"][1:] == [f"1 of 6 ports clip 1 % {what}: ap1:1"]
    found.clipped_share[5] = 0.034
    assert content(linearizer(found), "sweep")["doubts"][1:] == [f"2 of 6 ports clip up to 3.4 % {what}: ap1:1, ap2:2"]


def test_doubts_name_eight_ports_and_count_the_others():
    ports = names(11)
    assert reports._doubt(ports[:8], 20, "hum") == [f"8 of 20 ports hum: {', '.join(ports[:8])}"]
    assert reports._doubt(ports, 20, "hum") == [f"11 of 20 ports hum: {', '.join(ports[:8])} and 3 more"]


def test_doubts_of_collector_and_verification_are_told():
    told = content(linearizer(doubts=["ap1: pairs contradict each other"]),
                   ap2_verifier=verified(4.0, 4.1, doubts=["too good"]))["doubts"]
    assert told == ["ap2: too good", "ap1: pairs contradict each other"]
    assert content(linearizer(doubts=["hum"]), "sweep")["doubts"] == ["hum"]


def test_deviations_count_from_a_port_that_is_named():
    arrays = content()["access_points"]
    assert [arrays[ap]["deviations_from"] for ap in ("ap1", "ap2")] == ["ap1:1", "ap2:2"]
    assert arrays["ap1"]["trusted"] is arrays["ap2"]["trusted"] is True
    np.testing.assert_array_equal([arrays[ap][key] for ap in arrays for key in ("frequency_hz", "delay_s")], 0.0)
    member = linearizer()
    member.hubs.clear()
    assert content(member)["access_points"]["ap1"]["deviations_from"] is None


def test_order_is_checked_by_more_than_two_amplitudes():
    text = BED.replace("num_pilots: 100", "num_pilots: 100, design: two_level")
    collectors = {"linearizer": linearizer()}
    assert not reports.content(assembly(text=text), None, collectors)["amplifiers"]["order_checked"]
    assert reports.content(assembly(), None, collectors)["amplifiers"]["order_checked"]


def whole_report(protocol, text):
    """Report of a run on the simulated network."""
    bed = assembly(protocol, text)
    network, collectors = bed.network(), bed.collectors()
    roles = {name: bed.roles(name) for name in bed.schedule.nodes}
    run = DirectRun(bed.schedule, network, roles, list(collectors.values()))
    error = run.run()
    return whole_reports.report(whole_reports.Run(bed, network, collectors, error, run.releases, run.end_sample))


def sweeping(text):
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("linearity"))


def test_sweep_names_ports_that_stay_as_they_are():
    """Amplifiers so linear that predistortion cannot help for certain."""
    report = whole_report("sweep", sweeping(BED).replace("[-0.03, 0.02]", "[1.0e-6, 0]"))
    assert report["error"] is None
    assert report["doubts"] == ["6 of 6 ports are not predistorted: linear as they are, known too poorly (more "
                                "pilots), of an order that is too low, or clipped by it more than mended (a higher "
                                "peak_db): " + ", ".join(PORTS)]
    assert whole_report("sweep", sweeping(BED).replace("[-0.03, 0.02]", "[-0.01, 0]"))["doubts"] == []


def test_synchronised_run_keeps_its_own_doubts_beside_those_of_the_amplifiers():
    """Oscillators that are worse than the plan says, and amplifiers as in the sweep."""
    text = sweeping(BED).replace("[-0.03, 0.02]", "[1.0e-6, 0]")
    text = text.replace("slots:", "node_defaults: {oscillator: {drift_hz: 2, drift_period_s: 1}}\nslots:")
    text += ("beamsync: {sync_samples: 100, linewidth_hz: 1.0e-6, drift_hz: 1.0e-4, drift_period_s: 100, watches: 1,\n"
             "           budget_deg: 5}\n")
    report = whole_report("sync", text)
    assert report["error"] is None
    assert any("worse than" in doubt or "by themselves" in doubt or "later" in doubt for doubt in report["doubts"])
    assert sum("not predistorted" in doubt for doubt in report["doubts"]) == 1
    assert len(set(report["doubts"])) == len(report["doubts"])

# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols.slots import Product, build_schedule
from gnuradio.dmimo.protocols.verification import DOWNLINK, TRAINING, UPLINK, Plan, VerificationRole, Verifier

PORTS = {"a": 1, "b": 3, "ue": 2, "c": 2}
BEAMS = {"a": 3, "b": 2, "ue": 1, "c": 4}
APS = ("a", "b", "c")
CFO = {"a": 20.0, "b": -45.0, "c": 31.0, "ue": 50.0}


def verify(seed=3, *, wrong=1.0, start=50_000, calibrated_at=20_000, random_starts=40, repeats=8, **air_options):
    """Report and ideal of a verification with the true calibration of an earlier time, times `wrong`."""
    air = Air(np.random.default_rng(seed), PORTS, BEAMS, **air_options)
    layout = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
    plan = Plan(tuple(PORTS), APS, "ue", PORTS, BEAMS, layout, air.samp_rate, 12, 4, repeats, random_starts, seed)
    schedule = build_schedule(tuple(PORTS), 256, plan.phases(8))
    roles = {node: VerificationRole(node, plan) for node in PORTS}
    verifier = Verifier(plan, schedule.slots)
    frequency = np.concatenate([[air.cfo_hz[ap] - air.cfo_hz["a"]] * PORTS[ap] for ap in APS])
    verifier.update(Product("sweep", {
        "c": air.c(APS, calibrated_at) * wrong * np.exp(-2j * air.theta("a", calibrated_at)),
        "frequency_hz": frequency, "delay_s": np.zeros(6), "reference_time": calibrated_at}))
    for phase in (TRAINING, UPLINK, DOWNLINK):
        grants, results, start = run_phase(air, schedule, phase, roles, start)
        product = verifier.produce(phase, grants, results)
        if not product.trusted:
            return air, verifier.report or {"reasons": product.reasons}
        for role in roles.values():
            role.update(product)
        verifier.update(product)
    return air, verifier.report


@pytest.mark.parametrize("options", [{}, {"cfo_hz": CFO}, {"cfo_hz": CFO, "max_delay": 9}])
def test_true_calibration_reaches_the_ideal_gain_without_noise(options):
    _, report = verify(**options)
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=2e-4 if not options else 5e-3)
    assert report["coherent_gain_db"] > 2.0


def test_ideal_gain_equals_that_of_the_true_channel():
    air, report = verify()
    best = {ap: np.argmax(np.sum(np.abs(air.h[ap, "ue"][:, :, 0, 0] * air.r[ap][:, None]) ** 2, axis=0)) for ap in APS}
    dl = {ap: air.t[ap] * air.h[ap, "ue"][:, best[ap], 0, 0] for ap in APS}
    power = np.array([np.sum(np.abs(h) ** 2) for h in dl.values()])
    assert report["ideal_gain_db"] == pytest.approx(10 * np.log10(power.sum() ** 2 / np.sum(power**2)), abs=0.01)
    scattered = np.sum(power**2) / power.sum()
    assert report["best_single_node_db"] == pytest.approx(10 * np.log10(power.max() / scattered), abs=0.01)
    assert report["joint_power_db"] == pytest.approx(10 * np.log10(power.sum() * np.abs(air.r["ue"][0]) ** 2), abs=0.01)


def test_conjugated_or_unturned_calibration_loses_the_gain():
    air, good = verify(cfo_hz=CFO)
    for wrong in (np.exp(1j * np.array([0, 2, 2, 2, -2, -2])), air.c(APS, 20_000).conj() / air.c(APS, 20_000)):
        _, report = verify(cfo_hz=CFO, wrong=wrong)
        assert report["coherent_gain_db"] < good["coherent_gain_db"] - 1.0


def test_calibration_of_another_time_loses_the_gain_when_oscillators_differ():
    _, good = verify(cfo_hz=CFO)
    air = Air(np.random.default_rng(3), PORTS, BEAMS, cfo_hz=CFO)
    turned = air.c(APS, 25_000) / air.c(APS, 20_000)  # 5 ms late
    _, report = verify(cfo_hz=CFO, wrong=turned)
    assert report["coherent_gain_db"] < good["coherent_gain_db"] - 1.0


def test_random_starts_average_to_no_gain():
    _, report = verify(random_starts=400, repeats=8)
    mean = 10 ** (report["uncalibrated_gain_db"] / 10)
    std = mean * report["uncalibrated_gain_std_db"] * np.log(10) / 10
    assert abs(mean - 1.0) < 3 * std


def test_coherent_gain_at_20_db_lies_within_a_tenth_of_a_decibel_of_the_ideal():
    _, report = verify(noise_var=0.01, cfo_hz=CFO)
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.1)


def test_ue_that_nobody_hears_is_named_and_not_used():
    _, report = verify(noise_var=1e6)
    assert "ue: too weak" in report["reasons"][0]


def test_ideal_gain_does_not_depend_on_the_calibration_that_is_verified():
    """Wrong phases, amplitudes and phases within a node change what is sent, not what would be best."""
    _, good = verify()
    ideal = good["joint_power_db"]
    for wrong in (np.array([1, 1, 1, 1, -1, -1]), np.array([3, 1, 1, 1, 0.3, 1]), np.array([1, -1, -1, 1, 1, 1])):
        _, report = verify(wrong=wrong)
        assert report["joint_power_db"] < ideal - 0.1
        assert report["ideal_gain_db"] - report["coherent_gain_db"] == pytest.approx(
            ideal - report["joint_power_db"], abs=0.02)


def test_joint_transmission_far_from_the_ideal_is_not_trusted():
    _, bad = verify(wrong=np.array([1, 1, 1, 1, -1, -1]))
    assert bad["ideal_gain_db"] - bad["coherent_gain_db"] > 1.0


def test_offset_common_to_all_nodes_costs_nothing_and_a_late_label_does():
    """1 kHz for all APs against the UE and 30 Hz between them: times that are labelled wrongly show."""
    far = {"a": 1020.0, "b": 955.0, "ue": 0.0, "c": 1031.0}
    _, report = verify(cfo_hz=far)
    assert report["ideal_gain_db"] - report["coherent_gain_db"] < 5e-3

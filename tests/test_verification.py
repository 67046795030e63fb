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


def verify(seed=3, *, wrong=1.0, start=50_000, calibrated_at=20_000, random_starts=40, repeats=8, options=None,
           downlink_noise=None, receive_delay=0, **air_options):
    """Report and ideal of a verification with the true calibration of an earlier time, times `wrong`."""
    air = Air(np.random.default_rng(seed), PORTS, BEAMS, min_delay=receive_delay, **air_options)
    num = 256 + receive_delay
    layout = SlotLayout(num, 8, SoundingSymbol(128, 96, 32), 1, 8, receive_delay_samples=receive_delay)
    plan = Plan(tuple(PORTS), APS, "ue", PORTS, BEAMS, layout, air.samp_rate, 12, 4, repeats, random_starts, seed,
                **options or {})
    schedule = build_schedule(tuple(PORTS), num, plan.phases(8))
    roles = {node: VerificationRole(node, plan) for node in PORTS}
    verifier = Verifier(plan, schedule.slots)
    frequency = np.concatenate([[air.cfo_hz[ap] - air.cfo_hz["a"]] * PORTS[ap] for ap in APS])
    verifier.update(Product("sweep", {
        "c": air.c(APS, calibrated_at) * wrong * np.exp(-2j * air.theta("a", calibrated_at)),
        "frequency_hz": frequency, "delay_s": np.zeros(6), "reference_time": calibrated_at}))
    for phase in (TRAINING, UPLINK, DOWNLINK):
        if phase == DOWNLINK and downlink_noise is not None:
            air.noise_var = downlink_noise
        grants, results, start = run_phase(air, schedule, phase, roles, start)
        product = verifier.produce(phase, grants, results)
        if not product.trusted:
            return air, (verifier.report or {}) | {"reasons": product.reasons}
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
    wrong = np.array([1, 1, 1, 1, -1, -1])
    _, bad = verify(wrong=wrong)
    assert bad["ideal_gain_db"] - bad["coherent_gain_db"] > 1.0
    assert "calibration does not hold" in bad["reasons"][0]
    for limit in (100.0, None):
        _, same = verify(wrong=wrong, options={"max_loss_db": limit})
        assert "reasons" not in same
        assert same["coherent_gain_db"] == bad["coherent_gain_db"]


def test_report_without_a_limit_keeps_the_doubts():
    """What would end the run is said in the report."""
    _, report = verify(downlink_noise=3000.0)
    assert any("does not receive it" in reason for reason in report["reasons"])
    _, report = verify(downlink_noise=3000.0, options={"max_loss_db": None})
    assert "reasons" not in report
    assert any("does not receive it" in doubt for doubt in report["doubts"])
    _, report = verify(options={"max_loss_db": None})
    assert report["doubts"] == []


def test_aps_alone_show_the_same_gains_in_fewer_slots():
    for options in ({}, {"noise_var": 0.01, "cfo_hz": CFO}):
        _, ports = verify(**options)
        _, aps = verify(**options, options={"alone": "ap"})
        for key in ("coherent_gain_db", "ideal_gain_db", "best_single_node_db", "joint_power_db"):
            assert aps[key] == pytest.approx(ports[key], abs=0.05 if options else 1e-3)
    layout = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
    plans = [Plan(tuple(PORTS), APS, "ue", PORTS, BEAMS, layout, 1e6, 12, 4, 8, 40, 3, who) for who in ("port", "ap")]
    assert [len(plan.phases(8)[-1][2]) for plan in plans] == [8 * (1 + 6) + 40, 8 * (1 + 3) + 40]


def test_aps_alone_show_wrong_phases_between_aps_and_not_within():
    between, within = np.array([1, 1, 1, 1, -1, -1]), np.array([1, 1, 1, 1, 1, -1])
    _, good = verify(options={"alone": "ap"})
    _, bad = verify(wrong=between, options={"alone": "ap"})
    assert bad["ideal_gain_db"] == pytest.approx(good["ideal_gain_db"], abs=0.01)
    assert bad["coherent_gain_db"] < good["coherent_gain_db"] - 1.0
    _, hidden = verify(wrong=within, options={"alone": "ap"})
    _, shown = verify(wrong=within)

    def ideal_power_db(report):
        return report["joint_power_db"] + report["ideal_gain_db"] - report["coherent_gain_db"]

    assert ideal_power_db(shown) == pytest.approx(ideal_power_db(good), abs=0.02)
    assert ideal_power_db(hidden) < ideal_power_db(shown) - 0.3


def test_unknown_way_of_sending_alone_is_refused():
    with pytest.raises(ValueError, match="alone = 'node'"):
        verify(options={"alone": "node"})


def test_offset_common_to_all_nodes_costs_nothing_and_a_late_label_does():
    """1 kHz for all APs against the UE and 30 Hz between them: times that are labelled wrongly show."""
    far = {"a": 1020.0, "b": 955.0, "ue": 0.0, "c": 1031.0}
    _, report = verify(cfo_hz=far)
    assert report["ideal_gain_db"] - report["coherent_gain_db"] < 5e-3


def test_delay_common_to_all_links_beyond_the_prefix_costs_nothing():
    """300 Hz between APs turn by 0.2 rad in the delay: times taken at the wrong end would show."""
    far = {"a": 200.0, "b": -100.0, "ue": 50.0, "c": 150.0}
    _, report = verify(cfo_hz=far, receive_delay=100, max_delay=5)
    assert report["ideal_gain_db"] - report["coherent_gain_db"] < 5e-3

# SPDX-License-Identifier: GPL-3.0-or-later
"""Predicted deviations of what arrays calibrate by themselves: as large as the errors, whatever was left undone."""

import numpy as np
import pytest
from array_slots import KAPPA, Array, plan_of, run
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.protocols.mutual_coupling import AMPLITUDES, MutualCouplingRole
from gnuradio.dmimo.protocols.slots import Grant

UNLIKE = 0.05 * np.exp(2j * np.pi * np.array([0, 2, 4, 1, 5, 3]) / 6)  # as much in amplitude as in phase


def phases(collector, array):
    """Squared phase errors (ports - 1,) against the hub of the deviations, and what was predicted of them."""
    hub = collector.hubs["ap1"]
    error = np.angle(collector.c / array.c * np.conj(collector.c[hub] / array.c[hub]))
    keep = np.arange(len(error)) != hub
    return error[keep] ** 2, collector.phase_std_rad[keep] ** 2


def ratio_of(plan, calibration="all_pairs", trials=60, kappa=KAPPA, check=None, **options):
    """Mean squared phase error over the mean predicted one, and its standard error."""
    found, predicted = [], []
    for trial in range(trials):
        array = Array(np.random.default_rng([trial, 11]), 2, 3, kappa, **options)
        collector = run(plan, {"ap1": array}, calibration)[1]
        if check is not None:
            check(collector)
        errors, variances = phases(collector, array)
        found.append(errors.mean())
        predicted.append(variances.mean())
    mean, error = metrics.mean_and_standard_error(np.array(found) / np.mean(predicted))
    return mean, error


@pytest.mark.parametrize(("calibration", "changes"), [
    ("all_pairs", {}),
    ("ratio", {}),
    ("single_stage", {"single_stage": True}),
    ("single_stage", {"single_stage": True, "repeats": 4}),
    ("all_pairs", {"repeats": 3, "linear_repeats": 2}),
    ("all_pairs", {"hold_samples": 8, "guard_samples": 2, "slot_samples": 900}),
    ("all_pairs", {"predistorts": False}),
], ids=["all pairs", "ratio", "single stage", "single stage, repeats", "repeats", "held", "linear"])
def test_phases_deviate_as_predicted(calibration, changes):
    kappa = np.zeros(6) if not changes.get("predistorts", True) else KAPPA
    mean, error = ratio_of(plan_of({"ap1": 6}, **changes), calibration, kappa=kappa, noise_var=1e-3)
    assert abs(mean - 1) < 4 * error, (mean, error)


def test_amplifiers_that_are_left_as_they_are_turn_c_by_what_they_differ():
    """Pilots too weak to predistort: at their amplitude each amplifier has a phase of its own, which is not c's."""
    def refused(collector):
        assert collector.identifications["ap1"].refused.sum() >= 4

    plan = plan_of({"ap1": 6}, num_pilots=24, peak_db=3.0, linear_repeats=24)
    mean, error = ratio_of(plan, kappa=UNLIKE, noise_var=0.15, check=refused)
    # Estimates are poor where they are refused: what amplifiers may do is twice what these do.
    assert 0.15 < mean < 1 + 4 * error, (mean, error)
    without, _ = ratio_of(plan_of({"ap1": 6}, num_pilots=24, linear_repeats=24, predistorts=False), kappa=UNLIKE,
                          noise_var=0.15)
    assert without > 3


def test_a_model_that_is_too_small_costs_certainty():
    """A limiter at 2.2, beyond which third order means nothing: c at amplitude 1 is wrong, and not by the noise."""
    def flagged(collector):
        assert collector.identifications["ap1"].mismatch_limited.all()

    saturation = np.array([[2.2, 2.6, 2.0, 3.0, 2.4, 2.8]]).T
    mean, _ = ratio_of(plan_of({"ap1": 6}), trials=10, noise_var=1e-6, saturation=saturation, check=flagged)
    assert 0.005 < mean < 2


def test_a_poor_first_port_does_not_make_the_others_look_poor():
    array = Array(np.random.default_rng(1), 2, 3, noise_var=1e-6)
    array.gains[0] *= 1e-2
    array.gains[:, 0] *= 1e-2
    collector = run(plan_of({"ap1": 6}), {"ap1": array})[1]
    assert collector.hubs["ap1"] != 0
    assert collector.phase_std_rad[0] > 20 * collector.phase_std_rad[1:].max()
    assert collector.calibrations["ap1"].reference == collector.hubs["ap1"]
    assert collector.calibrations["ap1"].c[collector.hubs["ap1"]] == 1
    assert collector.phase_std_rad[collector.hubs["ap1"]] == 0
    assert collector.c[0] == 1


def test_gains_of_linear_pilots_are_those_of_the_links():
    array = Array(np.random.default_rng(2), 2, 3, kappa=np.zeros(6))
    plan = plan_of({"ap1": 6}, predistorts=False)
    role = MutualCouplingRole("ap1", plan)
    ((_, _, slots),) = plan.phases(1)
    for slot in slots:
        role.receive(slot, Grant(slot.variant, 0, 0), array.hear(role.transmit(slot, 0)))
    found = role.results([Grant(port, 0, 0) for port in range(6)])
    np.testing.assert_allclose(found["gains"], array.gains, atol=1e-6)
    assert found["residual_var"].max() < 1e-12


def test_pairs_that_contradict_each_other_are_a_doubt_and_cost_certainty():
    array = Array(np.random.default_rng(3), 2, 3, noise_var=1e-7)
    fine = run(plan_of({"ap1": 6}), {"ap1": array})[1]
    assert fine.doubts == []
    rng = np.random.default_rng(4)
    array.gains = array.gains * (1 + 0.05 * (rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6))))
    collector = run(plan_of({"ap1": 6}), {"ap1": array})[1]
    (doubt,) = collector.doubts
    assert doubt.startswith("ap1: the pairs of its ports contradict each other")
    errors, variances = phases(collector, array)
    assert 0.1 < errors.mean() / variances.mean() < 5
    assert variances.mean() > 100 * phases(fine, array)[1].mean()


def test_smeared_pilots_are_an_error_of_the_port_that_sends_them():
    """A second path one sample later, the same in all receivers: no noise of theirs, and none averages it."""
    def smear(array):
        plain = array.hear
        array.hear = lambda burst: plain(burst + 0.2 * np.roll(burst, 1, axis=1) * array.taps[:, None])

    found, predicted = [], []
    plan = plan_of({"ap1": 6}, predistorts=False)
    for trial in range(40):
        rng = np.random.default_rng([trial, 3])
        array = Array(rng, 2, 3, kappa=np.zeros(6), noise_var=1e-8)
        array.taps = np.exp(2j * np.pi * rng.random(6))
        smear(array)
        collector = run(plan, {"ap1": array})[1]
        errors, variances = phases(collector, array)
        found.append(errors.mean())
        predicted.append(variances.mean())
    # The pilots are the same in all trials: their own correlation with themselves one sample later, in size.
    assert 0.1 < np.mean(found) / np.mean(predicted) < 4


def test_swept_pilots_are_judged_by_the_noise_of_silence():
    array = Array(np.random.default_rng(5), 2, 3, noise_var=1e-6)
    plain = array.hear
    array.hear = lambda burst: plain(burst + 0.6 * np.roll(burst, 1, axis=1))
    products, collector, _ = run(plan_of({"ap1": 6}), {"ap1": array})
    found = collector.identifications["ap1"]
    assert found.unexplained.all()
    assert found.refused.all()
    assert np.array_equal(products[AMPLITUDES].values["predistortion"], np.tile([1, 0], (6, 1)))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The mutual-coupling protocol on slots made by hand, with amplifiers and couplings of its own, and what goes wrong."""

import re

import numpy as np
import pytest
from array_slots import KAPPA, LATENCY, Array, plan_of, predistorted, run
from coupled_arrays import complex_normal
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.predistortion_identification import misalignment
from gnuradio.dmimo.protocols.mutual_coupling import AMPLITUDES, COUPLING, MutualCouplingRole
from gnuradio.dmimo.protocols.mutual_coupling_collector import MutualCouplingCollector
from gnuradio.dmimo.protocols.slots import Grant


@pytest.fixture
def arrays():
    rng = np.random.default_rng(5)
    return {"ap1": Array(rng, 2, 3), "ap2": Array(rng, 1, 2, KAPPA[::-1])}


PORTS = {"ap1": 6, "ap2": 2}


@pytest.mark.parametrize("calibration", ["all_pairs", "ratio", "single_stage"])
def test_without_noise_everything_is_exact(arrays, calibration):
    plan = plan_of(PORTS, single_stage=calibration == "single_stage")
    products, collector, raw = run(plan, arrays, calibration)
    found = products[AMPLITUDES].values["predistortion"]
    truth = np.concatenate([KAPPA, KAPPA[::-1][:2]])
    assert products[AMPLITUDES].trusted
    # The bursts are complex64.
    assert np.abs(found[:, 1] - truth).max() < 1e-6
    values = products[AMPLITUDES if calibration == "single_stage" else COUPLING].values
    for name, array in arrays.items():
        own = plan.ports(name)
        c = values["internal_c"][own]
        assert c[0] == 1
        assert np.abs(c - array.c / array.c[0]).max() < 2e-6
        assert np.array_equal(values[f"{name}_c"], c)
    assert (collector.c != 0).all()
    x = complex_normal(np.random.default_rng(1), 6, 200).astype(np.complex64)
    u, _ = predistorted(plan, raw["ap1"], x)
    assert np.abs(u + KAPPA[:, None] * u * np.abs(u) ** 2 - x)[np.abs(x) < 2].max() < 1e-5


def test_errors_have_the_predicted_deviations():
    errors, kappas, phases, predicted = [], [], [], []
    for trial in range(40):
        rng = np.random.default_rng([trial, 7])
        array = Array(rng, 2, 3, noise_var=1e-4)
        plan = plan_of({"ap1": 6})
        _, collector, _ = run(plan, {"ap1": array})
        found = collector.identifications["ap1"]
        kappas.append(np.abs(found.coefficients[:, 1] - KAPPA) ** 2)
        errors.append(found.covariance[:, 0, 0].real)
        hub = int(np.argmin(collector.phase_std_rad))
        error = np.angle(collector.c / array.c * np.conj(collector.c[hub] / array.c[hub]))
        keep = np.arange(6) != hub
        phases.append(error[keep] ** 2)
        predicted.append(collector.phase_std_rad[keep] ** 2)
    for found, expected in ((kappas, errors), (phases, predicted)):
        mean, error = metrics.mean_and_standard_error(np.mean(found, axis=1) / np.mean(expected, axis=1))
        assert abs(mean - 1) < 4 * error, (mean, error)


def test_a_repeated_slot_counts_by_its_last_attempt(arrays):
    plan = plan_of(PORTS)
    once, _, _ = run(plan, arrays)
    again, _, _ = run(plan, arrays, retry=3)
    assert np.array_equal(once[COUPLING].values["internal_c"], again[COUPLING].values["internal_c"])


def test_repeats_lower_the_variance_as_they_should():
    array = Array(np.random.default_rng(3), 2, 3, noise_var=1e-4)
    one = run(plan_of({"ap1": 6}), {"ap1": array})[1]
    four = run(plan_of({"ap1": 6}, repeats=4, linear_repeats=4), {"ap1": array})[1]
    ratio = one.identifications["ap1"].covariance / four.identifications["ap1"].covariance
    assert ratio.real.mean() == pytest.approx(4, rel=0.1)
    keep = one.phase_std_rad > 0
    assert np.mean((one.phase_std_rad[keep] / four.phase_std_rad[keep]) ** 2) == pytest.approx(4, rel=0.1)


def first_product(array, **options):
    """What the collector makes of the first phase of an AP with six ports."""
    plan = plan_of({"ap1": 6}, **options)
    role, grants = MutualCouplingRole("ap1", plan), []
    for index, slot in enumerate(plan.phases(1)[0][2]):
        grants.append(Grant(index, 0, 0))
        role.receive(slot, grants[-1], array.hear(role.transmit(slot, 0)))
    return MutualCouplingCollector(plan).produce(AMPLITUDES, [], {"ap1": role.results(grants)})


@pytest.mark.parametrize(("late", "hold", "guard"), [(3, 1, 0), (-2, 4, 1)])
def test_late_pilots_are_told(arrays, late, hold, guard):
    arrays["ap1"].late = late
    product = first_product(arrays["ap1"], slot_samples=600, hold_samples=hold, guard_samples=guard)
    assert not product.trusted
    assert f"{abs(late)} samples {'late' if late > 0 else 'early'}" in product.reasons[0]


def test_held_pilots_do_not_feel_a_sample_of_delay(arrays):
    arrays["ap1"].late, arrays["ap2"].late = 1, -1
    plan = plan_of(PORTS, slot_samples=600, hold_samples=4, guard_samples=1)
    products, _, _ = run(plan, arrays)
    assert np.abs(products[AMPLITUDES].values["predistortion"][:6, 1] - KAPPA).max() < 1e-6


@pytest.mark.parametrize(("guard", "delays"), [
    (2, [0, 0, 0, 6, 6, 6]), (2, [0, 0, 0, 0, 0, 24]), (4, [0, 4, 6, 10, 0, 2]),
])  # fmt: skip
def test_ports_whose_loops_differ_by_more_than_twice_the_guard_are_told(guard, delays):
    array = Array(np.random.default_rng(6), 2, 3, noise_var=1e-6)
    array.loop_delays[:] = delays
    product = first_product(array, slot_samples=1600, hold_samples=12, guard_samples=guard)
    assert not product.trusted
    assert not product.values
    worst = max(delays) // 2
    words = rf"port (\d) arrive {min(worst, 4 + guard)} samples (late|early)( or more)? at port (\d): "
    of, side, more, to = re.search(words, product.reasons[0]).groups()
    assert array.loop_delays[int(of)] - array.loop_delays[int(to)] == (2 * worst if side == "late" else -2 * worst)
    assert (more is None) is (worst < 4 + guard)

    plan = plan_of({"ap1": 6}, slot_samples=2800, hold_samples=26, guard_samples=worst, prefix_samples=32)
    array.noise_var = 0.0
    products, collector, _ = run(plan, {"ap1": array})
    assert np.abs(products[AMPLITUDES].values["predistortion"][:, 1] - KAPPA).max() < 1e-6
    assert np.abs(collector.c - array.c / array.c[0]).max() < 2e-6


def test_noise_alone_is_neither_late_nor_early():
    energy = np.random.default_rng(8).gamma(2, size=(200, 6, 6, 13)) * 0.3
    noise_var = np.full(6, 0.3)
    assert not any(misalignment(one, noise_var, 2, 0.5).any() for one in energy)
    energy[0, 2, 4, 10] += 30 * 0.3
    lag = misalignment(energy[0], noise_var, 2, 0.5)
    assert lag[2, 4] == 10 - 6
    assert np.count_nonzero(lag) == 1


def test_a_receiver_that_clips_one_sample_of_a_pilot_is_left_out():
    plan = plan_of({"ap1": 6}, slot_samples=1000, hold_samples=8, guard_samples=2, full_scale={"ap1": 20.0})
    role, array = MutualCouplingRole("ap1", plan), Array(np.random.default_rng(4), 2, 3)
    slots = plan.phases(1)[0][2]
    for slot in slots:
        heard = array.hear(role.transmit(slot, 0))
        first = plan.start + LATENCY
        if slot.variant == 2:
            heard[4, first + 8 * 30 + 5] = -20j  # within the guards of a pilot
            heard[1, first + 8 * 30 + 7] = 30  # ignored
            heard[3, first - 1] = 30  # beside the pilots
        if slot.variant == 0:
            heard[0] = 30  # its own leakage does not matter
        role.receive(slot, Grant(slot.variant, 0, 0), heard)
    results = role.results([Grant(port, 0, 0) for port in range(6)])
    assert np.argwhere(results["saturated"]).tolist() == [[4, 2]]
    assert np.argwhere(~results["used"]).tolist() == sorted([[4, 2], *([port, port] for port in range(6))])
    collector = MutualCouplingCollector(plan)
    collector.produce(AMPLITUDES, [], {"ap1": results})
    found = collector.identifications["ap1"]
    assert found.saturated.tolist() == [False, False, True, False, False, False]
    assert np.abs(found.coefficients[2, 1] - KAPPA[2]) < 1e-6  # the four others have heard it


def test_a_dead_receiver_costs_its_port_only():
    array = Array(np.random.default_rng(4), 2, 3, noise_var=1e-6)
    array.gains[2] = 0.0
    products, collector, _ = run(plan_of({"ap1": 6}), {"ap1": array})
    assert products[COUPLING].trusted
    excluded = collector.c == 0
    assert excluded.tolist() == [False, False, True, False, False, False]
    assert np.isnan(collector.calibrations["ap1"].c[2])
    assert collector.identifications["ap1"].deaf.tolist() == excluded.tolist()
    assert not collector.identifications["ap1"].refused[[0, 1, 3, 4, 5]].any()
    keep = ~excluded
    assert metrics.alignment_error(collector.c[keep], array.c[keep]) < 1e-4


@pytest.mark.parametrize("calibration", ["all_pairs", "single_stage"])
def test_a_pair_that_clips_in_one_direction_is_left_out_in_both(calibration):
    array = Array(np.random.default_rng(4), 2, 3, noise_var=1e-8)
    array.gains[3, 1] *= 30  # so loud that c of this pair alone would be off by as much
    plan = plan_of({"ap1": 6}, full_scale={"ap1": 10.0}, single_stage=calibration == "single_stage")
    products, collector, _ = run(plan, {"ap1": array}, calibration)
    assert products[AMPLITUDES if plan.single_stage else COUPLING].trusted
    assert np.isfinite(collector.phase_std_rad).all()
    assert metrics.alignment_error(collector.c, array.c) < 1e-6


@pytest.mark.parametrize("calibration", ["all_pairs", "ratio", "single_stage"])
def test_receivers_that_clip_on_all_pairs_end_the_run_and_say_so(calibration, recwarn):
    array = Array(np.random.default_rng(4), 2, 3, noise_var=1e-8)
    plan = plan_of({"ap1": 6}, full_scale={"ap1": 0.01}, single_stage=calibration == "single_stage")
    products, _, _ = run(plan, {"ap1": array}, calibration)
    product = products[AMPLITUDES if plan.single_stage else COUPLING]
    assert not product.trusted
    assert "the receivers clip on 30 links" in product.reasons[0]
    assert not recwarn.list


def test_couplings_below_the_noise_end_the_run_and_change_nothing():
    array = Array(np.random.default_rng(4), 2, 3, noise_var=1e3)
    products, collector, raw = run(plan_of({"ap1": 6}), {"ap1": array})
    assert not products[COUPLING].trusted
    assert "no two of its ports hear each other" in products[COUPLING].reasons[0]
    found = collector.identifications["ap1"]
    assert found.refused.all()
    assert not found.heard.any()
    x = complex_normal(np.random.default_rng(1), 6, 50).astype(np.complex64)
    assert np.array_equal(predistorted(plan_of({"ap1": 6}), raw["ap1"], x)[0], x)


def test_an_amplifier_beyond_its_range_is_flagged_and_clips_are_counted():
    # Limited at 1.5: pilots reach 3.2, a third-order polynomial does not describe that.
    array = Array(np.random.default_rng(4), 2, 3, noise_var=1e-6, saturation=np.array([[9, 9, 1.5, 9, 9, 9]]).T)
    _, collector, raw = run(plan_of({"ap1": 6}), {"ap1": array})
    found = collector.identifications["ap1"]
    assert found.mismatch_limited.tolist() == [False, False, True, False, False, False]
    x = np.full((6, 10), 50.0, np.complex64)
    _, clipped = predistorted(plan_of({"ap1": 6}), raw["ap1"], x)
    assert (clipped == np.where(found.refused, 0, 10)).all()

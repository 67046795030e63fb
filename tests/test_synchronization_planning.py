# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from carrier_pairs import (
    PAIR,
    SAMP_RATE,
    STD_HZ,
    STD_RAD,
    SimulatedPairs,
    mean_and_deviation,
    run_tracker,
    steps_of,
)
from gnuradio.dmimo.core.carrier_model import HORIZON_S, MAX_INNOVATION_STD_RAD, CarrierModel
from gnuradio.dmimo.core.carrier_tracking import CarrierTracker
from gnuradio.dmimo.core.synchronization_planning import (
    gain_budget,
    gain_loss_db,
    resynchronisation_interval,
    steady_state_std_rad,
)


@pytest.mark.parametrize(("budget", "std_hz"), [(0.15, STD_HZ), (0.3, np.inf)])
def test_exchanges_at_the_planned_interval_keep_the_budget_and_use_it(budget, std_hz):
    interval = resynchronisation_interval(budget, measurement_std_rad=STD_RAD, frequency_std_hz=std_hz, **PAIR)
    num_pairs = 400
    blocks = steps_of(interval, 30)
    # The constant part of the offset is known in the steady state; learning it takes several drift periods.
    pairs = SimulatedPairs(num_pairs, 23, offset_hz=1e-6)
    errors, _, _ = run_tracker(pairs, num_pairs, blocks, 23, std_hz=std_hz, offset_hz=1e-6)
    mean, error = mean_and_deviation((errors[14:, 0] ** 2).mean(axis=0) / budget**2)
    assert abs(mean - 1) < 4 * error < 0.25


def test_the_interval_has_its_closed_forms():
    common = {"frequency_std_hz": np.inf, "drift_period_s": 50.0}
    budget, std, linewidth = 0.1, 0.04, 0.02
    found = resynchronisation_interval(budget, measurement_std_rad=std, linewidth_hz=linewidth, drift_hz=0.0, **common)
    rate = 8 * np.pi * linewidth
    np.testing.assert_allclose(found, budget**4 / (rate * (budget**2 + std**2)), rtol=1e-9)
    # Exact measurements of both: what is left is what the oscillator does in one interval.
    exact = {"measurement_std_rad": 0.0, "frequency_std_hz": 0.0, "linewidth_hz": linewidth, "drift_hz": 0.1,
             "drift_period_s": 50.0}
    found = resynchronisation_interval(budget, **exact)
    np.testing.assert_allclose(CarrierModel(linewidth, 0.1, 50.0).noise(found)[0, 0], budget**2, rtol=1e-8)


def test_the_steady_state_is_where_the_filter_ends():
    tracker = CarrierTracker(SAMP_RATE, **PAIR, offset_std_hz=1.0)
    interval = 700_000
    for k in range(400):
        tracker.update(0.0, STD_RAD, k * interval, 0.0, STD_HZ)
    # After n exchanges the constant part of the offset is known to about drift / sqrt(n times interval over period).
    np.testing.assert_allclose(
        tracker.predicted_std_rad(400 * interval),
        steady_state_std_rad(0.7, measurement_std_rad=STD_RAD, frequency_std_hz=STD_HZ, **PAIR), rtol=2e-3)


def test_the_interval_falls_with_drift_linewidth_and_measurement_error_and_grows_with_the_budget():
    base = {"measurement_std_rad": 0.03, "frequency_std_hz": 0.5, "linewidth_hz": 2e-4, "drift_hz": 0.05,
            "drift_period_s": 20.0}
    interval = resynchronisation_interval(0.1, **base)
    for name, change in [("drift_hz", 0.1), ("linewidth_hz", 4e-4), ("measurement_std_rad", 0.05)]:
        assert resynchronisation_interval(0.1, **{**base, name: change}) < 0.95 * interval
    assert resynchronisation_interval(0.2, **base) > 1.5 * interval
    assert resynchronisation_interval(0.1, **{**base, "drift_hz": 0.0, "linewidth_hz": 0.0}) == HORIZON_S


def test_budgets_that_cannot_be_met_raise_with_what_can():
    model = {"measurement_std_rad": 0.05, "frequency_std_hz": 1.0, "linewidth_hz": 1.0, "drift_hz": 1.0,
             "drift_period_s": 10.0}
    with pytest.raises(ValueError, match=r"exchanges every shortest_s=0\.1 s leave 1\.6"):
        resynchronisation_interval(0.05, shortest_s=0.1, **model)
    for budget in (0.0, -1.0, np.nan, MAX_INNOVATION_STD_RAD):
        with pytest.raises(ValueError, match="budget_rad="):
            resynchronisation_interval(budget, **model)
    with pytest.raises(ValueError, match="linewidth_hz=-1"):
        resynchronisation_interval(0.1, **{**model, "linewidth_hz": -1.0})


def test_its_own_plans_lead_a_tracker_to_the_steady_state_where_even_intervals_never_get():
    model = {"linewidth_hz": 1e-5, "drift_hz": 0.014, "drift_period_s": 30.0}
    interval = resynchronisation_interval(0.2, measurement_std_rad=0.005, frequency_std_hz=0.1, **model)
    planned, even = (CarrierTracker(SAMP_RATE, offset_std_hz=1e-3, **model) for _ in range(2))
    sample, events = 0, []
    for k in range(40):
        planned.update(0.0, 0.005, sample, 0.0, 0.1)
        even.update(0.0, 0.005, round(1.4 * k * interval * SAMP_RATE), 0.0, 0.1)
        events.append((str(planned.events), str(even.events)))
        before, sample = sample, int(planned.next_synchronisation(0.2, sample).sample)
    assert {name for name, _ in events[1:]} == {"applied"}
    np.testing.assert_allclose((sample - before) / SAMP_RATE, interval, rtol=0.02)
    # At 1.4 times the interval the steady state would be 0.32 rad, well within what can be unwrapped.
    assert {name for _, name in events[1:]} == {"restarted"}


@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("num_nodes", [2, 3, 12])
def test_gain_loss_is_the_mean_of_drawn_phases_and_the_budget_inverts_it(leader, num_nodes):
    rng = np.random.default_rng(num_nodes)
    errors = 0.5 * rng.standard_normal((100_000, num_nodes))
    if leader:
        errors[:, 0] = 0.0
    power = np.abs(np.exp(1j * errors).sum(axis=1)) ** 2 / num_nodes**2
    mean, error = mean_and_deviation(power)
    assert abs(10 ** (-gain_loss_db(0.5, num_nodes, leader=leader) / 10) - mean) < 4 * error
    for std in (1e-6, 0.01, 0.3, 1.5):
        loss = gain_loss_db(std, num_nodes, leader=leader)
        np.testing.assert_allclose(gain_budget(loss, num_nodes, leader=leader), std, rtol=1e-3 if std < 1e-3 else 1e-9)
    assert gain_budget(10 * np.log10(num_nodes) + 0.01, num_nodes, leader=leader) == np.inf
    assert gain_budget(0.0, num_nodes, leader=leader) == 0.0


def test_twenty_degrees_cost_less_than_one_decibel():
    assert gain_loss_db(np.radians(20), 1000) < 1.0
    assert gain_loss_db(np.radians(20), 31, leader=False) < 1.0

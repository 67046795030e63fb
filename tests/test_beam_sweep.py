# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols import beam_sweep
from gnuradio.dmimo.protocols.slots import Grant, Product, Reception, build_schedule

PORTS = {"a": 1, "b": 3, "c": 2, "u": 1}
BEAMS = {"a": 3, "b": 2, "c": 1, "u": 1}
APS = ("a", "b", "c")


def parts(order, *, window=4, receive_delay=0):
    symbol, num = SoundingSymbol(64, 48, 16), 320 + receive_delay
    layouts = {ap: SlotLayout(num, 8, symbol, PORTS[ap], 4, receive_delay_samples=receive_delay) for ap in APS}
    slots = beam_sweep.sweep_slots(tuple(PORTS), APS, BEAMS, order)
    schedule = build_schedule(tuple(PORTS), num, [(beam_sweep.PHASE, window, slots)])
    roles = {node: beam_sweep.SweepRole(node, layouts, tuple(PORTS)) for node in PORTS}
    return schedule, layouts, roles


def sweep(order, start=10_000, receive_delay=0, **air_options):
    air = Air(np.random.default_rng(5), PORTS, BEAMS, min_delay=receive_delay, **air_options)
    schedule, layouts, roles = parts(order, receive_delay=receive_delay)
    collector = beam_sweep.SweepCollector(schedule.slots, layouts, order, 6, air.samp_rate, {})
    grants, results, _ = run_phase(air, schedule, beam_sweep.PHASE, roles, start)
    return air, collector, collector.produce(beam_sweep.PHASE, grants, results)


def test_every_ordered_beam_pair_is_measured_once_and_its_reverse_follows_at_once():
    order = beam_sweep.rounds(4)
    assert len({tuple(pair) for pair in order.tolist()}) == len(order) == 16
    reverse = beam_sweep.swapped(order)
    assert np.array_equal(order[reverse], order[:, ::-1])
    assert np.abs(reverse - np.arange(16)).max() == 1


@pytest.mark.parametrize("pairs", range(1, 10))
def test_partial_sweep_holds_both_directions_of_each_path(pairs):
    order = beam_sweep.rounds(3, beam_pairs=pairs, passes=2)
    assert pairs - 1 <= len(order) / 2 <= pairs
    assert np.array_equal(order[beam_sweep.swapped(order)], order[:, ::-1])


def test_measurements_of_a_pair_are_the_two_directions_of_one_path():
    air, collector, _ = sweep(beam_sweep.rounds(3))
    y, c = collector.sweep.y, air.c(APS, 0)
    node = collector.node_of_port
    for i in range(6):
        for j in range(6):
            if node[i] == node[j]:
                assert np.isnan(y[i, j]).all()
            else:
                np.testing.assert_allclose(y[i, j] / y[j, i], c[j] / c[i], rtol=1e-5)


def test_noiseless_sweep_recovers_unequal_gains_of_unequal_nodes():
    air, collector, product = sweep(beam_sweep.rounds(3), max_delay=9)
    assert product.trusted, product.reasons
    assert metrics.alignment_error(product.values["c"], air.c(APS, 0)) < 1e-9


def test_delay_common_to_all_links_beyond_the_prefix_belongs_to_the_middle_of_the_way():
    """Each oscillator enters twice, 100 samples apart: 0.2 rad between the APs if c were said to belong to one end."""
    cfo = {"a": 200.0, "b": -150.0, "c": 180.0, "u": 0.0}
    air, collector, product = sweep(beam_sweep.rounds(3), receive_delay=100, cfo_hz=cfo, max_delay=5)
    assert product.trusted, product.reasons
    assert 4 <= collector.delay_samples <= 9
    truth = air.c(APS, product.values["reference_time"])
    assert metrics.alignment_error(product.values["c"], truth) < 2e-5


def test_frequency_offsets_are_removed_and_c_belongs_to_its_reference_time():
    cfo = {"a": 20.0, "b": -45.0, "c": 31.0, "u": 50.0}
    air, collector, product = sweep(beam_sweep.rounds(3), cfo_hz=cfo, noise_var=1e-4, max_delay=5)
    assert product.trusted, product.reasons
    reference_time = product.values["reference_time"]
    assert 10_000 < reference_time < 10_000 + 27 * 320
    truth = air.c(APS, reference_time)
    assert metrics.alignment_error(product.values["c"], truth) < 1e-5
    # One path long before the reference time would be off by tens of degrees.
    assert metrics.alignment_error(product.values["c"], air.c(APS, 10_000)) > 1e-2
    expected = np.array([cfo["a"]] + [cfo["b"]] * 3 + [cfo["c"]] * 2) - cfo["a"]
    np.testing.assert_allclose(product.values["frequency_hz"], expected, atol=0.2)


def test_partial_sweep_recovers_c_too():
    air, _, product = sweep(beam_sweep.rounds(3, beam_pairs=5))
    assert metrics.alignment_error(product.values["c"], air.c(APS, 0)) < 1e-9


def test_noise_variance_reported_is_that_of_the_estimates():
    air, collector, _ = sweep(beam_sweep.rounds(3, passes=20), noise_var=0.01)
    np.testing.assert_allclose(collector.sweep.noise_var, 0.01 * 6 / 64, rtol=0.1)


def test_each_role_answers_only_in_its_slots():
    schedule, layouts, roles = parts(beam_sweep.rounds(3))
    for slot in schedule.slots:
        sending = {node for node, role in roles.items() if role.transmit(slot, 0) is not None}
        assert sending == set(slot.transmitters)
    assert roles["a"].transmit(schedule.slots[0], 0).shape == (1, 320)
    assert roles["u"].results([]) is None
    roles["a"].update(Product("other", {}))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="beam_pairs = 10"):
        beam_sweep.rounds(3, beam_pairs=10)
    with pytest.raises(ValueError, match="num_beams = 0"):
        beam_sweep.rounds(0)


def test_kept_slots_are_forgotten_when_their_phase_has_ended():
    reception = Reception()
    reception.keep(Grant(0, 0, 0), np.ones((1, 4)))
    assert reception.take([Grant(0, 0, 0)]).shape == (1, 1, 4)
    with pytest.raises(KeyError):
        reception.take([Grant(0, 0, 0)])


@pytest.mark.parametrize("delay", [0, 6])
def test_calibration_delay_beyond_the_spacing_of_sub_bands_is_found_with_its_sign(delay):
    """Sub-bands of 8 bins in 64 resolve 4 samples between ports; the transmit chain of b is later by `delay`."""
    order = beam_sweep.rounds(3)
    air = Air(np.random.default_rng(5), PORTS, BEAMS)
    schedule, layouts, roles = parts(order)
    send = roles["b"].transmit

    def late(slot, start):
        burst = send(slot, start)
        return None if burst is None else np.roll(burst, delay, axis=1)

    roles["b"].transmit = late
    collector = beam_sweep.SweepCollector(schedule.slots, layouts, order, 6, air.samp_rate, {})
    grants, results, _ = run_phase(air, schedule, beam_sweep.PHASE, roles, 0)
    product = collector.produce(beam_sweep.PHASE, grants, results)
    assert product.trusted, product.reasons
    expected = np.array([0, 1, 1, 1, 0, 0]) * delay / air.samp_rate
    np.testing.assert_allclose(product.values["delay_s"], expected, atol=1e-9)


def test_noise_of_short_sweeps_hardly_ever_passes_for_the_signals_own():
    """The powers of 15 empty bins and of 56 silent samples differ by more than half in 7 % of such sweeps."""
    schedule, layouts, _ = parts(beam_sweep.rounds(1))
    collector = beam_sweep.SweepCollector(schedule.slots, layouts, beam_sweep.rounds(1), 6, 1e6, {})
    bins, quiet = collector._symbol.empty_bins.size, 320 - layouts["b"].silence.start
    rng = np.random.default_rng(8)
    flagged = np.zeros(2, int)
    for _ in range(4000):
        h = np.ones((1, 1, 3, 48), complex)
        silence = rng.exponential(size=(1, quiet)).mean(axis=-1)
        for k, leak in enumerate((0.0, 5.0)):
            beside = (1 + leak) * rng.exponential(size=(1, bins)).mean(axis=-1)
            result = {"slots": np.zeros(1), "noise_var": beside, "silence_var": silence, "h": h}
            flagged[k] += len(collector._leaks({"a": result}))
    assert flagged[0] <= 2
    assert flagged[1] > 3000

# SPDX-License-Identifier: GPL-3.0-or-later
"""Loop delays of ports that hear themselves, from synthetic slots, without GNU Radio."""

import numpy as np
import pytest
from gnuradio.dmimo.core.timing import delay_crlb, fractional_shift
from gnuradio.dmimo.protocols.loop_delay import PHASE, LoopDelayCollector, LoopDelayPlan, LoopDelayRole
from gnuradio.dmimo.protocols.slots import Grant, Product, build_schedule

POWER = 0.09  # of what a port hears of itself


class Radios:
    """Nodes whose ports hear their own bursts after a delay, over paths of (delay, gain), and nothing else."""

    def __init__(self, delays, *, slot_samples=256, snr_db=None, paths=((0.0, 1.0),), seed=1, **options):
        self.delays = {node: np.asarray(values, float) for node, values in delays.items()}
        ports = {node: len(values) for node, values in delays.items()}
        self.plan = LoopDelayPlan((*delays, "ue"), ports, slot_samples, **options)
        self.schedule = build_schedule(self.plan.nodes, slot_samples, [(PHASE, 16, self.plan.slots())])
        self.roles = {node: LoopDelayRole(node, self.plan) for node in self.plan.nodes}
        self.collector, self.rng, self.paths = LoopDelayCollector(self.plan), np.random.default_rng(seed), paths
        self.noise = 0.0 if snr_db is None else np.sqrt(POWER / 2 * 10 ** (-snr_db / 10))
        self.gains = {node: np.sqrt(POWER) * np.exp(2j * np.pi * self.rng.random(n)) for node, n in ports.items()}

    def received(self, slot, node, start=0):
        """What the node's ports receive, cut as late as its role says."""
        role, delays = self.roles[node], self.delays[node]
        burst, cut = role.transmit(slot, start), role.loop_delays
        out = self.noise * (self.rng.standard_normal((2, len(delays), self.plan.slot_samples)))
        out = out[0] + 1j * out[1]
        for port in range(len(delays) if burst is not None else 0):
            for later, gain in self.paths:
                total = delays[port] + later - (0 if cut is None else cut[port])
                out[port] += gain * self.gains[node][port] * fractional_shift(burst[port], total)
        return out.astype(np.complex64)

    def results(self):
        """Results of all nodes, and the attempts of the phase."""
        grants = [Grant(slot.index, 0, slot.index * self.plan.slot_samples) for slot in self.schedule.slots]
        for grant, slot in zip(grants, self.schedule.slots, strict=True):
            for node in self.delays:
                self.roles[node].receive(slot, grant, self.received(slot, node, grant.start))
        results = {node: role.results(grants) for node, role in self.roles.items()}
        return {node: values for node, values in results.items() if values is not None}, grants

    def play(self):
        """Product of the phase, which all roles have taken if it is trusted."""
        results, grants = self.results()
        product = self.collector.produce(PHASE, grants, results)
        if product.trusted:
            for role in self.roles.values():
                role.update(product)
        return product


# -- the estimate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot_samples", [64, 65, 100, 256, 1024, 4096])
def test_delays_are_exact_without_noise_from_nothing_to_the_limit(slot_samples):
    limit = LoopDelayPlan(("a",), {"a": 1}, slot_samples).max_delay_samples
    delays = {"a": [0.0, 1.0, limit - 1.0, limit], "b": [limit // 2]}
    radios = Radios(delays, slot_samples=slot_samples)
    product = radios.play()
    assert product.trusted, product.reasons
    np.testing.assert_array_equal(product.values["loop_delays"], [*delays["a"], *delays["b"]])
    np.testing.assert_allclose(product.values["delay_samples"], [*delays["a"], *delays["b"]], atol=1e-3)
    for node, expected in delays.items():
        np.testing.assert_array_equal(radios.roles[node].loop_delays, expected)
        assert radios.roles[node].loop_delays.dtype == np.int64


@pytest.mark.parametrize("slot_samples", [64, 96, 128, 200, 256, 1000, 4096, 20_000])
def test_half_of_a_slot_can_be_measured_and_more_of_a_long_one(slot_samples):
    plan = LoopDelayPlan(("a",), {"a": 1}, slot_samples)
    assert plan.max_delay_samples >= slot_samples / 2
    assert plan.max_delay_samples >= slot_samples - 544
    assert plan.margin_samples + len(plan.burst) + plan.max_delay_samples + plan.margin_samples == slot_samples


def test_fraction_of_a_sample_is_measured_and_left():
    delays = [3.2, 3.45, 3.8, 7.0]
    values = Radios({"a": delays}).play().values
    np.testing.assert_array_equal(values["loop_delays"], [3, 3, 4, 7])
    np.testing.assert_allclose(values["delay_samples"], delays, atol=1e-3)


@pytest.mark.parametrize(("slot_samples", "snr_db"), [(64, 10.0), (256, 0.0), (256, 20.0), (1024, -5.0)])
def test_delay_error_meets_the_bound_and_the_prediction(slot_samples, snr_db):
    """RMSE over the bound, of 400 estimates, within 4 standard errors of 1; the bound leaves the carrier unknown."""
    ports, repeats = 400, 2
    radios = Radios({"a": 5.0 + np.random.default_rng(7).random(ports)}, slot_samples=slot_samples, snr_db=snr_db,
                    repeats=repeats, guard_samples=0)
    values = only_own(radios).values
    error = values["delay_samples"] - radios.delays["a"]
    bound = np.sqrt(delay_crlb(radios.plan.burst, 10 ** (snr_db / 10), num_ports=repeats))
    tolerance = 4 / np.sqrt(2 * ports)
    assert np.sqrt(np.mean(error**2)) / bound == pytest.approx(1.0, abs=tolerance + 0.05)  # second order in the noise
    assert np.sqrt(np.mean((error / values["delay_std_samples"]) ** 2)) == pytest.approx(1.0, abs=tolerance + 0.05)
    assert np.mean(values["snr_db"]) == pytest.approx(snr_db, abs=0.5)


def only_own(radios):
    """Product as of `play` for a node with many ports; each slot is made of the port whose turn it is."""
    role, plan = radios.roles["a"], radios.plan
    delays, gains, grants = radios.delays["a"], radios.gains["a"], []
    for slot in radios.schedule.slots:
        samples = np.zeros((len(delays), plan.slot_samples), np.complex64)
        burst = np.zeros(plan.slot_samples)
        burst = np.pad(plan.burst, (plan.margin_samples, plan.slot_samples - plan.margin_samples - plan.burst.size))
        noise = radios.noise * radios.rng.standard_normal((2, plan.slot_samples))
        port = slot.variant
        samples[port] = gains[port] * fractional_shift(burst, delays[port]) + noise[0] + 1j * noise[1]
        grants.append(Grant(slot.index, 0, slot.index * plan.slot_samples))
        role.receive(slot, grants[-1], samples)
    return radios.collector.produce(PHASE, grants, {"a": role.results(grants)})


@pytest.mark.parametrize("snr_db", [-16.0, -12.0, -8.0, -4.0])
def test_port_is_distrusted_before_its_whole_delay_is_wrong(snr_db):
    """Of 400 delays without a fraction, heard ever worse, none is wrong among those that are trusted."""
    radios = Radios({"a": np.full(400, 20.0)}, snr_db=snr_db, guard_samples=0)
    product = only_own(radios)
    wrong = np.flatnonzero(product.values["loop_delays"] != 20)
    doubtful = {int(reason.split("port ")[1].split(":")[0]) for reason in product.reasons}
    assert set(wrong) <= doubtful
    if snr_db == -16.0:
        assert len(wrong) > 100
    if snr_db == -4.0:
        assert len(doubtful) < 20


def test_noise_alone_is_not_taken_for_a_burst():
    """400 ports; the probability of one false alarm is 0.04."""
    radios = Radios({"a": np.full(400, 20.0)}, snr_db=0.0, guard_samples=0)
    radios.gains["a"] = np.zeros(400)
    assert len(only_own(radios).reasons) == 400


@pytest.mark.parametrize("gain", [1e-4, 1j, -30.0])
def test_delay_does_not_depend_on_the_gain(gain):
    radios, other = (Radios({"a": [12.3, 4.9]}, snr_db=20.0) for _ in range(2))
    other.gains["a"] = other.gains["a"] * gain
    other.noise *= abs(gain)
    # The same noise in size, at another phase: equal within what noise does.
    one, two = radios.play().values, other.play().values
    std = np.hypot(one["delay_std_samples"], two["delay_std_samples"])
    assert np.all(np.abs(one["delay_samples"] - two["delay_samples"]) < 5 * std)
    np.testing.assert_array_equal(one["loop_delays"], two["loop_delays"])


def test_delay_does_not_depend_on_other_ports_and_nodes():
    """A port measured alone and among others, of other delays and gains."""
    alone, among = Radios({"a": [17.25]}), Radios({"b": [3.0], "a": [17.25, 60.0], "c": [90.0, 0.0]})
    one, all_of_them = alone.play(), among.play()
    first = among.plan.ports("a").start
    assert all_of_them.values["delay_samples"][first] == pytest.approx(one.values["delay_samples"][0], abs=1e-4)


# -- slots and roles --------------------------------------------------------------------------------------------------


def test_ports_sound_one_at_a_time_and_all_others_are_silent():
    radios = Radios({"a": [0.0, 0.0], "b": [0.0]}, repeats=3)
    heard = []
    for slot in radios.schedule.slots:
        sent = {node: burst for node, role in radios.roles.items() if (burst := role.transmit(slot, 0)) is not None}
        assert tuple(sent) == slot.transmitters
        for node, burst in sent.items():
            assert burst.shape == (len(radios.delays[node]), 256)
            assert burst.dtype == np.complex64
            (port,) = np.flatnonzero(burst.any(axis=1))
            assert np.mean(np.abs(burst[port, burst[port] != 0]) ** 2) == pytest.approx(1.0)
            heard.append((node, int(port)))
    assert heard == [("a", 0), ("a", 1), ("b", 0)] * 3


@pytest.mark.parametrize(("slot_samples", "guard_samples", "silent"), [(64, 1024, 16), (256, 1000, 4), (256, 0, 0)])
def test_guard_slots_follow_every_burst(slot_samples, guard_samples, silent):
    plan = LoopDelayPlan(("a", "b"), {"a": 2}, slot_samples, repeats=1, guard_samples=guard_samples)
    assert [len(slot.transmitters) for slot in plan.slots()] == [1, *[0] * silent] * 2


def test_late_burst_is_not_taken_for_an_early_one_of_a_later_slot():
    """What is sent in a slot arrives in the slots after it, all of them received by their node."""
    radios = Radios({"a": [0.0, 0.0]})
    size, late = 256, 256 + 30  # as 30 in the next slot, were it not silent
    stream = np.zeros((2, size * (len(radios.schedule.slots) + 3)), complex)
    for slot in radios.schedule.slots:
        burst = radios.roles["a"].transmit(slot, 0)
        if burst is not None:
            begin = slot.index * size + late
            stream[:, begin : begin + size] += burst + 0.5 * burst[::-1]  # ports hear each other, too
    grants = [Grant(slot.index, 0, slot.index * size) for slot in radios.schedule.slots]
    for grant, slot in zip(grants, radios.schedule.slots, strict=True):
        part = stream[:, grant.start : grant.start + size] + 1e-3 * radios.rng.standard_normal((2, size))
        radios.roles["a"].receive(slot, grant, part)
    product = radios.collector.produce(PHASE, grants, {"a": radios.roles["a"].results(grants)})
    assert [reason.split(";")[0] for reason in product.reasons] == [
        f"node a: port {port}: does not hear itself, so that its loop delay is not known" for port in (0, 1)]


def test_second_run_counts_on_the_delays_in_force():
    """The receiver cuts later already: the same product, and a change of the loop is seen."""
    radios = Radios({"a": [37.3, 5.0]}, snr_db=30.0)
    first = radios.play().values["loop_delays"]
    np.testing.assert_array_equal(first, [37, 5])
    np.testing.assert_array_equal(radios.play().values["loop_delays"], first)
    radios.delays["a"] = np.array([35.3, 9.0])
    np.testing.assert_array_equal(radios.play().values["loop_delays"], [35, 9])


def test_product_that_is_not_trusted_or_of_another_phase_changes_nothing():
    radios = Radios({"a": [5.0]})
    role = radios.roles["a"]
    role.update(Product("sweep", {}))
    role.update(Product(PHASE, {"loop_delays": np.array([3])}, False, ("no",)))
    assert role.loop_delays is None
    radios.roles["ue"].update(Product(PHASE, {"loop_delays": np.array([3])}))
    assert radios.roles["ue"].loop_delays is None


def test_attempts_that_do_not_count_are_left_out():
    radios = Radios({"a": [5.0]}, snr_db=30.0)
    slot = radios.schedule.slots[0]
    radios.roles["a"].receive(slot, Grant(0, 7, 0), np.full((1, 256), np.nan, np.complex64))
    assert radios.play().values["loop_delays"] == [5]


# -- doubts -----------------------------------------------------------------------------------------------------------


def reasons(radios):
    product = radios.play()
    assert not product.trusted
    assert all(role.loop_delays is None for role in radios.roles.values())
    assert all("radio.loop_delays_samples with usrp.loop_delay: given" in reason for reason in product.reasons)
    return [reason.split(";")[0] for reason in product.reasons]


@pytest.mark.parametrize("snr_db", [None, 20.0])
def test_port_that_does_not_hear_itself_is_named(snr_db):
    radios = Radios({"a": [5.0, 6.0], "b": [7.0]}, snr_db=snr_db)
    radios.gains["a"][1] = 0.0
    assert reasons(radios) == ["node a: port 1: does not hear itself, so that its loop delay is not known"]


def test_delay_beyond_the_limit_is_named():
    radios = Radios({"a": [5.0, 168.0]}, snr_db=30.0)
    assert reasons(radios) == [
        "node a: port 1: its loop delay of about 168 samples is more than can be measured in slots of "
        "slot_samples=256, 160"]


def test_delay_below_zero_is_named():
    radios = Radios({"a": [-4.0]}, snr_db=30.0)
    assert reasons(radios) == [
        "node a: port 0: hears itself 4.0 samples before it sends: its two chains do not share their time"]


@pytest.mark.parametrize(("relative", "trusted"), [(0.9, False), (0.75, False), (0.6, True), (0.3, True)])
def test_two_paths_of_about_equal_power_are_named(relative, trusted):
    radios = Radios({"a": [5.0]}, snr_db=40.0, paths=((0.0, 1.0), (20.0, relative * 1j)))
    if trusted:
        assert radios.play().values["loop_delays"] == [5]
    else:
        (reason,) = reasons(radios)
        assert reason.startswith("node a: port 0: hears itself over two paths of about equal power (-")


def test_port_that_hears_itself_too_weakly_is_named():
    radios = Radios({"a": [20.0] * 40}, snr_db=-8.0)
    weak = "hears itself too weakly (-8 dB): its loop delay has a predicted deviation of 0.1"
    assert any(weak in reason for reason in reasons(radios))


def test_node_without_results_is_named():
    radios = Radios({"a": [5.0], "b": [6.0]})
    results, grants = radios.results()
    del results["b"]
    product = radios.collector.produce(PHASE, grants, results)
    assert (product.trusted, product.reasons) == (False, ("node b: has measured no loop delay",))


def test_samples_that_are_not_finite_are_not_trusted():
    radios = Radios({"a": [5.0]})
    radios.gains["a"][0] = np.nan
    assert reasons(radios) == ["node a: port 0: does not hear itself, so that its loop delay is not known"]


@pytest.mark.parametrize(("arguments", "text"), [
    ({"slot_samples": 63}, "slot_samples=63"), ({"repeats": 0}, "repeats=0"), ({"guard_samples": -1}, "guard_samples"),
    ({"num_ports": {}}, "num_ports"), ({"num_ports": {"x": 1}}, "num_ports"), ({"num_ports": {"a": 0}}, "num_ports")])
def test_plans_that_cannot_be_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        LoopDelayPlan(**{"nodes": ("a",), "num_ports": {"a": 1}, "slot_samples": 256, **arguments})

# SPDX-License-Identifier: GPL-3.0-or-later
"""The role block, driven by handler calls; what it publishes is recorded."""

import numpy as np
import pmt
import pytest
from gnuradio import dmimo
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.timetags import rate_ratio, sample_from_pmt
from gnuradio.dmimo.protocols.slots import Grant, Product, Slot, build_schedule


class Echo:
    """Role that sends its slot number, and keeps what it gets."""

    purposes = frozenset({"echo"})
    reactive = False

    def __init__(self, reactive=False):
        self.reactive = reactive
        self.received, self.products = [], []

    def beam(self, slot):
        return 3

    def transmit(self, slot, start):
        return np.full((1, 10), slot.index, np.complex64) if "a" in slot.transmitters else None

    def receive(self, slot, grant, samples):
        self.received.append((slot.index, grant, samples))

    def results(self, grants):
        return {"slots": np.array([grant.slot for grant in grants])}

    def update(self, product):
        self.products.append(product)


SCHEDULE = build_schedule(("a", "b"), 10, [("echo", 4, [Slot(0, "echo", ("ab"[k % 2],), (0, 0)) for k in range(4)])])


def make(role=None, num_ports=1, **options):
    block = dmimo.role("a", num_ports, SCHEDULE, [role or Echo()], 1e6, **options)
    block.published = []
    block.message_port_pub = lambda port, message: block.published.append((pmt.symbol_to_string(port), message))
    return block


def grant(*grants):
    return messages.encode("grant", run=0, epoch=0, grants=messages.grants_to_pmt(grants))


def received(*grants, status="ok"):
    samples = None if status != "ok" else np.ones((len(grants), 1, 10)) * [[[grant.slot]] for grant in grants]
    samples = None if samples is None else samples.astype(np.complex64)
    return messages.received_burst(messages.burst_header("a", 1), grants, samples, status)


class Ahead:
    """A correction: device time is ahead of network time by 7 samples, from sample 100 on by 8, from 1000 on by 6."""

    def shift(self, start):
        return 7 if start < 100 else 8 if start < 1000 else 6

    def transmit(self, samples, start):
        return samples * 1j

    def receive(self, samples, start):
        return samples * start


def on_radio(reactive=False, **options):
    """Block of node a on a radio, with a role that corrects its clock."""
    member = Echo(reactive)
    member.correction = Ahead()
    member.transmit = lambda slot, start: np.full((1, 10), 0.5, np.complex64) if "a" in slot.transmitters else None
    return member, make(member, fill=False, **options)


def event(name="burst_ack", node="a", port=0, error="", **sample):
    return messages.encode("radio_event", event=name, node=node, port=port, board=1, channel=2, error=error, **sample)


def published(block, port):
    return [message for name, message in block.published if name == port]


def test_receiver_is_armed_before_the_burst_and_silence_is_zeros():
    block = make()
    block.handle_control(grant(Grant(0, 0, 0), Grant(1, 0, 20)))
    assert [name for name, _ in block.published] == ["arm", "tx", "tx"]
    sent = [messages.vector_from_pmt(pmt.cdr(message)) for message in published(block, "tx")]
    assert [set(samples.tolist()) for samples in sent] == [{0j}, {0j}]
    block.handle_control(grant(Grant(2, 0, 30)))
    assert set(messages.vector_from_pmt(pmt.cdr(published(block, "tx")[-1])).tolist()) == {2 + 0j}
    meta = pmt.to_python(pmt.car(published(block, "tx")[-1]))
    assert meta == {"tx_time": (0, pytest.approx(30e-6)), "beam": 3, "slot": 2}


def test_slots_in_a_row_go_out_as_one_burst_and_a_gap_parts_them():
    block = make()
    block.handle_control(grant(Grant(0, 0, 10), Grant(1, 0, 20), Grant(2, 0, 30), Grant(3, 0, 50)))
    run, alone = published(block, "tx")
    assert pmt.to_python(pmt.cdr(run)).tolist() == [0] * 10 + [0] * 10 + [2] * 10
    meta = pmt.to_python(pmt.car(run))
    assert meta["tx_time"] == (0, pytest.approx(10e-6))
    assert (meta["slot"].tolist(), meta["beam"].tolist()) == ([0, 1, 2], [3, 3, 3])
    assert pmt.to_python(pmt.car(alone))["slot"] == 3


def test_bursts_that_differ_are_not_mistaken_for_one_another():
    role = Echo()
    same = [np.full((1, 10), k, np.complex64) for k in range(3)]
    role.transmit = lambda slot, start: same[(slot.index + start // 100) % 3]
    block = make(role)
    for round_ in range(4):
        block.handle_control(grant(*(Grant(k, round_, 100 * round_ + 10 * k) for k in range(4))))
    sent = [pmt.to_python(pmt.cdr(message)).real.reshape(4, 10).tolist() for message in published(block, "tx")]
    assert sent == [[[float((k + round_) % 3)] * 10 for k in range(4)] for round_ in range(4)]


@pytest.mark.parametrize(("slot_samples", "sizes"), [(512, [4, 4]), (700, [2, 2, 2, 2]), (5000, [1] * 8)])
def test_runs_of_slots_fit_the_buffers_of_the_transmitter(slot_samples, sizes):
    slots = [Slot(0, "echo", ("b",), (0, 0)) for _ in range(8)]
    block = dmimo.role("a", 1, build_schedule(("a", "b"), slot_samples, [("echo", 8, slots)]), [Echo()], 1e6)
    sent = []
    block.message_port_pub = lambda port, message: sent.append((pmt.symbol_to_string(port), message))
    block.handle_control(grant(*(Grant(k, 0, k * slot_samples) for k in range(8))))
    assert [pmt.length(pmt.cdr(message)) for name, message in sent if name == "tx"] == [
        size * slot_samples for size in sizes]


def test_without_fill_silence_is_not_sent():
    block = make(fill=False)
    block.handle_control(grant(Grant(0, 0, 0), Grant(1, 0, 10)))
    assert [pmt.to_python(pmt.car(message))["slot"] for message in published(block, "tx")] == [0]


def test_to_a_radio_every_slot_goes_out_as_a_burst_of_its_own():
    role = Echo()
    role.transmit = lambda slot, start: np.full((1, 7), slot.index, np.complex64)
    block = make(role, fill=False)
    block.handle_control(grant(Grant(0, 0, 0), Grant(1, 0, 10)))
    assert [pmt.to_python(pmt.car(message))["slot"] for message in published(block, "tx")] == [0, 1]
    assert [pmt.length(pmt.cdr(message)) for message in published(block, "tx")] == [7, 7]


@pytest.mark.parametrize("reactive", [True, False])
def test_slots_received_together_are_acknowledged_together_but_for_those_known_or_never_granted(reactive):
    role = Echo(reactive)
    block = make(role)
    first, second, third = (Grant(k, 0, 10 * k) for k in range(3))
    block.handle_control(grant(first, second, third))
    block.handle_rx(received(first))
    block.handle_rx(received(first, second, third, Grant(3, 0, 30)))
    assert [messages.ack(m)[1] for m in published(block, "status")] == [[first], [second, third]]
    block.handle_control(messages.encode("phase", phase="echo", grants=messages.grants_to_pmt([first])))
    assert [(slot, got, set(samples.ravel().tolist())) for slot, got, samples in role.received] == [
        (k, Grant(k, 0, 10 * k), {k + 0j}) for k in range(3)]


def test_grants_and_bursts_that_come_twice_are_dropped():
    role = Echo(reactive=True)
    block = make(role)
    for _ in range(2):
        block.handle_control(grant(Grant(1, 0, 10)))
    assert len(published(block, "tx")) == 1
    for _ in range(2):
        block.handle_rx(received(Grant(1, 0, 10)))
    assert len(published(block, "status")) == len(role.received) == 1
    block.handle_control(grant(Grant(1, 0, 10), Grant(1, 1, 50)))
    assert messages.grants(published(block, "arm")[-1]) == [Grant(1, 1, 50)]


def test_bursts_of_slots_never_granted_are_ignored():
    block = make()
    block.handle_rx(received(Grant(1, 0, 10)))
    assert not block.published


@pytest.mark.parametrize("reactive", [True, False])
def test_reactive_roles_get_their_samples_at_once_others_at_the_end_of_the_phase(reactive):
    role = Echo(reactive)
    block = make(role)
    block.handle_control(grant(Grant(1, 0, 10)))
    block.handle_rx(received(Grant(1, 0, 10)))
    assert len(role.received) == reactive
    block.handle_control(messages.encode("phase", phase="echo", grants=messages.grants_to_pmt([Grant(1, 0, 10)])))
    assert len(role.received) == 1
    assert messages.get(published(block, "results")[0], "values")["slots"] == [1]


def test_lost_burst_is_acknowledged_as_such_and_never_reaches_the_role():
    role = Echo(reactive=True)
    block = make(role)
    block.handle_control(grant(Grant(1, 0, 10)))
    block.handle_rx(received(Grant(1, 0, 10), status="lost"))
    assert messages.ack(published(block, "status")[0]) == ("a", [Grant(1, 0, 10)], "lost")
    assert not role.received


def test_answers_carry_run_epoch_and_schedule_hash():
    block = make()
    block.handle_control(messages.encode("begin", run=4, epoch=2, hash=SCHEDULE.hash))
    ready = published(block, "status")[0]
    assert [messages.get(ready, key) for key in ("run", "epoch", "node", "hash")] == [4, 2, "a", SCHEDULE.hash]
    block.handle_control(grant(Grant(1, 0, 10)))
    block.handle_rx(received(Grant(1, 0, 10)))
    assert messages.run(published(block, "status")[-1]) == 4


def test_products_reach_every_role_and_are_acknowledged():
    role = Echo()
    block = make(role)
    block.handle_control(messages.product_to_pmt(Product("echo", {"k": 1}), run=0, epoch=0))
    assert role.products[0].values == {"k": 1}
    assert messages.kind(published(block, "status")[0]) == "taken"


def test_burst_of_wrong_shape_is_an_error_that_names_the_slot():
    role = Echo()
    role.transmit = lambda slot, start: np.zeros((2, 10), np.complex64)
    block = make(role)
    block.handle_control(grant(Grant(0, 0, 0)))
    assert "slot 0: burst of 2 ports x 10 samples" in pmt.symbol_to_string(published(block, "error")[0])


def test_purpose_without_a_role_is_refused():
    role = Echo()
    role.purposes = frozenset({"other"})
    with pytest.raises(ValueError, match=r"none for slots of purpose \['echo'\]"):
        make(role)


def test_simulated_faults_silence_the_node_or_lose_acknowledgements():
    block = make(silent_from=2)
    block.handle_control(grant(Grant(1, 0, 10)))
    block.handle_control(grant(Grant(2, 0, 20)))
    block.handle_rx(received(Grant(1, 0, 10)))
    block.handle_rx(received(Grant(2, 0, 20)))
    block.handle_control(messages.encode("query", run=0, epoch=0))
    assert [messages.ack(m)[1] for m in published(block, "status")] == [[Grant(1, 0, 10)]]
    block = make(unacknowledged={1: 1})
    for attempt in (0, 1):
        both = Grant(1, attempt, 10), Grant(2, attempt, 20)
        block.handle_control(grant(*both))
        block.handle_rx(received(*both))
    assert [messages.ack(m)[1] for m in published(block, "status")] == [[Grant(2, 0, 20)], list(both)]


def test_on_a_radio_bursts_and_receive_windows_are_in_device_time():
    _, block = on_radio()
    block.handle_control(grant(Grant(0, 0, 20), Grant(2, 1, 100)))
    assert messages.grants(published(block, "arm")[0]) == [Grant(0, 0, 27), Grant(2, 1, 108)]
    assert [pmt.to_python(pmt.car(message)) for message in published(block, "tx")] == [
        {"tx_time": (0, pytest.approx(sample * 1e-6)), "beam": 3, "slot": slot} for slot, sample in [(0, 27), (2, 108)]]


def test_a_burst_ends_before_the_next_slot_where_the_clock_is_set_back():
    _, block = on_radio()
    block.handle_control(grant(Grant(0, 0, 980), Grant(2, 1, 990)))
    assert [pmt.length(pmt.cdr(message)) for message in published(block, "tx")] == [10, 8]


@pytest.mark.parametrize("reactive", [True, False])
def test_what_a_shifted_radio_receives_belongs_to_the_slot_as_granted(reactive):
    member, block = on_radio(reactive)
    first, second = Grant(0, 0, 20), Grant(1, 0, 100)
    block.handle_control(grant(first, second))
    block.handle_rx(received(Grant(0, 0, 27), Grant(1, 0, 108)))
    assert messages.ack(published(block, "status")[-1]) == ("a", [first, second], "ok")
    block.handle_control(messages.encode("phase", phase="echo", grants=messages.grants_to_pmt([first, second])))
    assert [(slot, got, set(samples.ravel().tolist())) for slot, got, samples in member.received] == [
        (0, first, {0j}), (1, second, {100 + 0j})]  # corrected for network time


def test_a_simulated_network_is_told_the_shift_by_a_tag():
    member = Echo()
    member.correction = Ahead()
    block = make(member)
    block.handle_control(grant(Grant(0, 0, 20)))
    assert messages.grants(published(block, "arm")[0]) == [Grant(0, 0, 20)]
    meta = pmt.to_python(pmt.car(published(block, "tx")[0]))
    assert (meta["tx_time"], meta["shift"]) == ((0, pytest.approx(20e-6)), 7)


def test_what_the_radio_says_of_a_burst_goes_on_to_the_scheduler_in_network_time():
    _, block = on_radio()
    block.handle_control(messages.encode("begin", run=4, epoch=2, hash=SCHEDULE.hash))
    block.handle_event(event(sample=57))
    block.handle_event(event("time_error", port=1, error="board 1: too late"))
    block.handle_event(event(node="b", sample=57))
    told = [messages.values(message) for message in published(block, "status") if messages.kind(message) == "sent"]
    common = {"run": 4, "epoch": 2, "node": "a"}
    assert told == [{**common, "port": 0, "event": "burst_ack", "status": "ok", "sample": 50},
                    {**common, "port": 1, "event": "time_error", "status": "board 1: too late"}]


def test_a_burst_that_is_not_sent_at_all_is_said_to_be_over():
    member, block = on_radio()
    member.transmit = lambda slot, start: None
    block.handle_control(grant(Grant(0, 0, 20), Grant(1, 0, 30)))  # the first one is its own
    told = [messages.values(message) for message in published(block, "status")]
    assert [(one["node"], one["port"], one["event"], one["status"], one["sample"]) for one in told] == [
        ("a", 0, "silent", "ok", 30)]
    assert not published(block, "tx")


def test_the_beam_of_every_slot_is_told_before_the_burst_with_its_device_time():
    _, block = on_radio()
    late = Grant(1, 2, 5_000_000)
    block.handle_control(grant(Grant(0, 0, 20), late))
    assert [name for name, _ in block.published] == ["arm", "beam", "tx", "beam"]
    told = [messages.values(message) for message in published(block, "beam")]
    assert told == [
        {"node": "a", "slot": 0, "attempt": 0, "beam": 3, "sample": 27, "seconds": 0,
         "fraction": pytest.approx(27e-6, abs=1e-12)},
        {"node": "a", "slot": 1, "attempt": 2, "beam": 3, "sample": 5_000_006, "seconds": 5,
         "fraction": pytest.approx(6e-6, abs=1e-12)}]


def test_a_simulated_network_has_its_beams_in_the_stream():
    block = make()
    block.handle_control(grant(Grant(0, 0, 0)))
    assert not published(block, "beam")


def test_the_amplitude_scales_what_is_sent_and_full_scale_is_allowed():
    _, block = on_radio(amplitude=2.0)
    block.handle_control(grant(Grant(0, 0, 20)))
    assert set(messages.vector_from_pmt(pmt.cdr(published(block, "tx")[0])).tolist()) == {1j}


@pytest.mark.parametrize(("sample", "peak"), [(0.3 - 0.6j, "1.2"), (-0.75 + 0j, "1.5")])
def test_samples_beyond_full_scale_are_an_error_that_names_the_amplitude_and_the_peak(sample, peak):
    member, block = on_radio(amplitude=2.0)
    member.correction = None
    burst = np.zeros((1, 10), np.complex64)
    burst[0, 3] = sample
    member.transmit = lambda slot, start: burst
    block = make(member, fill=False, amplitude=2.0)
    block.handle_control(grant(Grant(0, 0, 20)))
    error = pmt.symbol_to_string(published(block, "error")[0])
    assert f"node a, slot 0 (echo): tx_amplitude = 2 makes a peak of {peak}" in error
    assert not published(block, "tx")


@pytest.mark.parametrize("options", [{"amplitude": 0.0, "fill": False}, {"amplitude": 0.5}, {"amplitude": -1.0}])
def test_an_amplitude_is_for_radios_and_positive(options):
    with pytest.raises(ValueError, match=f"amplitude = {options['amplitude']}"):
        make(**options)


def test_half_of_a_loop_delay_is_taken_from_the_receiver_before_any_slot():
    member, block = on_radio()
    member.loop_delays = None
    block.handle_control(messages.encode("begin", run=0, epoch=0, hash=SCHEDULE.hash))
    assert not published(block, "arm")
    member.loop_delays = np.array([13])
    block.handle_control(messages.product_to_pmt(Product("echo", {}), run=0, epoch=0))
    (delays,) = published(block, "arm")
    assert messages.kind(delays) == "delays"
    assert messages.get(delays, "samples").tolist() == [7]
    assert [name for name, _ in block.published][-2:] == ["arm", "status"]


def two_ports(burst, delays):
    """Role block of a radio's node of two ports that sends a burst, with loop delays; the burst that it sent."""
    member, _ = on_radio()
    member.correction, member.transmit = None, lambda slot, start: burst
    member.loop_delays = np.array(delays)
    block = make(member, num_ports=2, fill=False)
    block.handle_control(messages.encode("begin", run=0, epoch=0, hash=SCHEDULE.hash))
    block.handle_control(grant(Grant(0, 0, 100)))
    return block


def test_ports_send_half_of_their_loop_delays_earlier_and_confirmations_count_that():
    burst = np.zeros((2, 10), np.complex64)
    burst[:, 4:] = [[0.1], [0.2]]
    block = two_ports(burst, [9, 13])  # 4 and 6 samples
    (sent,) = published(block, "tx")
    assert sample_from_pmt(pmt.dict_ref(pmt.car(sent), messages.TX_TIME, pmt.PMT_NIL), rate_ratio(1e6)) == 96
    samples = messages.vector_from_pmt(pmt.cdr(sent)).reshape(2, 10)
    np.testing.assert_array_equal(samples[0], burst[0])
    np.testing.assert_array_equal(samples[1], [*burst[1, 2:], 0, 0])
    block.handle_event(event(sample=106))
    confirmed = [m for m in published(block, "status") if messages.kind(m) == "sent"]
    assert [messages.get(message, "sample") for message in confirmed] == [110]


def test_a_burst_that_was_sent_before_is_staggered_once_the_loop_delays_are_known():
    burst = np.zeros((2, 10), np.complex64)
    burst[:, 4:] = [[0.1], [0.2]]
    block = two_ports(burst, [0, 0])
    block._roles[0].loop_delays = np.array([9, 13])
    block.handle_control(messages.product_to_pmt(Product("echo", {}), run=0, epoch=0))
    block.handle_control(grant(Grant(0, 1, 200)))
    before, after = (messages.vector_from_pmt(pmt.cdr(sent)).reshape(2, 10) for sent in published(block, "tx"))
    np.testing.assert_array_equal(before, burst)
    np.testing.assert_array_equal(after[1], [*burst[1, 2:], 0, 0])


def test_windows_of_a_run_that_is_over_are_not_taken_for_those_of_the_next():
    member, block = on_radio(reactive=True)
    identity = {"epoch": 2, "hash": SCHEDULE.hash}
    block.handle_control(messages.encode("begin", run=0, **identity))
    block.handle_control(grant(Grant(1, 0, 20)))  # armed at 27
    block.handle_control(messages.encode("begin", run=1, **identity))
    member.correction.shift = lambda start: 0
    block.handle_control(grant(Grant(1, 0, 20), Grant(1, 0, 27)))
    block.handle_rx(received(Grant(1, 0, 27)))
    assert [taken for _, taken, _ in member.received] == [Grant(1, 0, 27)]


def test_ports_whose_loop_delays_differ_by_more_than_the_silence_of_a_slot_are_an_error():
    block = two_ports(np.full((2, 10), 0.1, np.complex64), [9, 13])
    assert "differ by 4 samples: slots.lead_samples" in pmt.symbol_to_string(published(block, "error")[0])

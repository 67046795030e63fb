# SPDX-License-Identifier: GPL-3.0-or-later
"""Links between two hosts and the bridges over them, with both ends in this process."""

import threading
import time
from functools import partial
from pathlib import Path

import pmt
import pytest
from gnuradio import gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.host_bridge import host_bridge
from gnuradio.dmimo.hosts import Addresses
from gnuradio.dmimo.hosts_link import Link, text
from graph import message_sink, message_source, wait_for
from host_processes import Relay, free_ports


class End:
    """One end of a link, which keeps what comes."""

    def __init__(self, port, coordinator, address="127.0.0.1"):
        self.taken, self.failures = [], []
        self.link = Link(Addresses(f"tcp://{address}:{port}", f"tcp://{address}:{port + 1}"), coordinator,
                         lambda session, to, message: self.taken.append((session, to, message)), self.failures.append)
        self.link.open()


@pytest.fixture
def end():
    ends = []

    def make(*arguments, **options):
        ends.append(End(*arguments, **options))
        return ends[-1]

    yield make
    for member in ends:
        if member.link._top is not None:
            member.link.close()


def test_messages_cross_both_ways_in_order_and_texts_of_any_length(end):
    port = free_ports(2)
    here, there = end(port, True), end(port, False)
    for number in range(200):
        here.link.send("s", "ap1/control", pmt.from_long(number))
    long = "Öx" * 5000
    there.link.say("t", "bye", instance="me", error=long)
    wait_for(lambda: len(there.taken) == 200 and len(here.taken) == 1)
    assert [pmt.to_long(message) for *_, message in there.taken] == list(range(200))
    assert {entry[:2] for entry in there.taken} == {("s", "ap1/control")}
    assert here.taken[0][:2] == ("t", "link")
    assert text(here.taken[0][2], "error") == long


def test_a_message_of_another_form_is_an_error_that_says_so(end):
    port = free_ports(2)
    here, there = end(port, True), end(port, False)
    there.link._push.to_basic_block()._post(pmt.intern("in"), pmt.intern("hello?"))
    wait_for(lambda: here.failures)
    assert "does another program use this port?" in here.failures[0]


def test_a_link_closes_while_a_message_waits_for_nobody(end, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.hosts_link.LIMIT_S", 3600.0)  # it is not given up
    here = end(free_ports(2), True)
    here.link.say("s", "beat", instance="me")
    closing = threading.Thread(target=here.link.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def connections(port):
    """Established TCP connections of a port, by their sockets, and those that only one end has closed."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {tuple(line[1:3]) for line in lines if line[3] in ("01", "08")  # ESTABLISHED, CLOSE_WAIT
            and f":{port:04X}" in (line[1][-5:], line[2][-5:])}


def test_a_closed_link_takes_no_messages_and_its_ports_are_free(end):
    port = free_ports(2)
    here, first = end(port, True), end(port, False)
    here.link.say("s", "beat", instance="me")
    wait_for(lambda: first.taken)
    first.link.close()
    wait_for(lambda: not connections(port) | connections(port + 1))  # until `here` knows
    second = end(port, False)
    for _ in range(20):
        here.link.say("s", "beat", instance="me")
    wait_for(lambda: len(second.taken) == 20)
    here.link.close()
    here.link.say("s", "beat", instance="me")  # goes nowhere
    end(port, True)


@pytest.mark.parametrize("reopens", [True, False])
def test_a_reopened_link_deals_nothing_to_a_program_that_has_gone(end, reopens):
    port = free_ports(2)
    relay = Relay("127.0.0.2", "127.0.0.1", (port, port + 1), hold=True)
    here, gone = end(port, True), end(port, False, address="127.0.0.2")
    here.link.say("s", "beat", instance="me")
    wait_for(lambda: gone.taken)
    gone.link.close()
    there = end(port, False, address="127.0.0.2")
    there.link.say("s", "beat", instance="me")
    wait_for(lambda: here.taken)
    if reopens:
        here.link.reopen()
    for _ in range(20):
        here.link.say("s", "beat", instance="me")
    wait_for(lambda: len(there.taken) >= (20 if reopens else 10))
    time.sleep(0.2)  # for what should not come
    assert len(there.taken) == (20 if reopens else 10)
    relay.close()


def bridges(end, there_inputs, here_outputs):
    """Bridges at both ends of a link, a source and a sink for each of the ports."""
    port = free_ports(2)
    here, there = end(port, True), end(port, False)
    there_bridge = host_bridge("ap1", partial(there.link.send, "s"), there_inputs, ())
    here_bridge = host_bridge("ap1", partial(here.link.send, "s"), (), here_outputs)
    return here, here_bridge, there_bridge


def test_a_bridge_carries_errors_of_any_length_and_bursts_to_the_bit(end):
    here, here_bridge, there_bridge = bridges(end, ("status", "rx"), ("status", "rx"))
    flowgraph = gr.top_block()
    sources = {port: message_source() for port in ("status", "rx")}
    sinks = {port: message_sink() for port in ("status", "rx")}
    for port in sources:
        flowgraph.msg_connect(sources[port], "out", there_bridge, port)
        flowgraph.msg_connect(here_bridge, port, sinks[port], "in")
    error = "role: Traceback\n" + "ü" * 3000
    burst = pmt.cons(pmt.dict_add(pmt.make_dict(), pmt.intern("a"), pmt.from_long(2**40)),
                     pmt.init_c32vector(3, [1e-30 + 1j, -0.0, 3e38]))
    flowgraph.start()
    sources["status"].send(pmt.intern(error))
    sources["rx"].send(burst)
    wait_for(lambda: len(here.taken) == 2)
    for _, to, message in here.taken:
        here_bridge.deliver(to.removeprefix("ap1/"), message)
    assert pmt.symbol_to_string(sinks["status"].wait(1)[0]) == error
    assert pmt.serialize_str(sinks["rx"].wait(1)[0]) == pmt.serialize_str(burst)
    flowgraph.stop()
    flowgraph.wait()


def test_a_bridge_keeps_what_comes_before_its_flowgraph_runs(end):
    bridge, sink, flowgraph = host_bridge("ap1", None, (), ("control",)), message_sink(), gr.top_block()
    flowgraph.msg_connect(bridge, "control", sink, "in")
    for number in range(5):
        bridge.deliver("control", pmt.from_long(number))
    flowgraph.start()
    assert [pmt.to_long(message) for message in sink.wait(5)] == list(range(5))
    flowgraph.stop()
    flowgraph.wait()
    with pytest.raises(ValueError, match="message for port 'rx' of host_bridge ap1"):
        bridge.deliver("rx", pmt.PMT_T)


def test_the_end_of_a_run_comes_out_here_too_and_crosses_without_its_traceback():
    sent, source, sink, flowgraph = [], message_source(), message_sink(), gr.top_block()
    bridge = host_bridge("ap1", lambda to, message: sent.append((to, message)), ("control",), ())
    flowgraph.msg_connect(source, "out", bridge, "control")
    flowgraph.msg_connect(bridge, "end", sink, "in")
    flowgraph.start()
    source.send(messages.encode("end", run=0, epoch=0, error="x" * 5000))
    sink.wait(1)
    wait_for(lambda: sent)
    assert sent[0][0] == "ap1/control"
    assert messages.kind(sent[0][1]) == "end"
    assert len(messages.get(sent[0][1], "error")) == 200
    flowgraph.stop()
    flowgraph.wait()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The loop delays that the ports of radios report, checked and published."""

import numpy as np
import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.loop_delay import PHASE
from graph import message_sink, message_source

BED = ("{version: 1, frontend: usrp, usrp: {radios: [{}]}, slots: {slot_samples: 512}, "
       "nodes: [{name: ap1}, {name: ap2, num_ports: 2}, {name: ap3}]}")
HEARD = {"ap1": [17.2], "ap2": [17.4, 18.6], "ap3": [3.0]}


def measured(delays, found=True):
    """What a node reports of ports that hear themselves so much later, clearly."""
    shape = np.ones(len(delays))
    return {"delay_samples": np.array(delays), "delay_std_samples": 0.01 * shape, "snr": 100 * shape,
            "found": found * shape, "inside_samples": np.array(delays), "rival": 0 * shape}


def product_of(reports, assembly):
    """Block and product after all nodes have reported the phase."""
    flowgraph = gr.top_block()
    block, source, sink = dmimo.loop_delay_monitor(assembly), message_source(), message_sink()
    phases = message_source()
    flowgraph.msg_connect(source, "out", block, "results")
    flowgraph.msg_connect(phases, "out", block, "phases")
    flowgraph.msg_connect(block, "products", sink, "in")
    flowgraph.start()
    try:
        phases.send(messages.encode("phase", phase=PHASE, grants=messages.grants_to_pmt([])))
        for node, values in reports.items():
            source.send(messages.encode("results", phase=PHASE, node=node, values=values))
        sink.wait(1)
    finally:
        flowgraph.stop()
        flowgraph.wait()
    return block, messages.product(sink.messages[0])


def test_delays_of_all_ports_are_published_and_kept_by_name():
    reports = {node: measured(delays) for node, delays in HEARD.items()}
    block, product = product_of(reports, Assembly(testbed.parse(BED)))
    assert product.trusted
    assert product.values["loop_delays"].tolist() == [17, 17, 19, 3]
    assert block.delays == {"ap1:0": 17, "ap2:0": 17, "ap2:1": 19, "ap3:0": 3}


def test_a_port_that_does_not_hear_itself_is_named_and_nothing_is_kept():
    reports = {node: measured(delays, found=node != "ap3") for node, delays in HEARD.items()}
    block, product = product_of(reports, Assembly(testbed.parse(BED)))
    assert not product.trusted
    assert [reason.split(":")[0] for reason in product.reasons] == ["node ap3"]
    assert block.delays == {}


def test_with_given_delays_the_block_has_nothing_to_do():
    bed = BED.replace("usrp: {", "usrp: {loop_delay: given, ")
    block = dmimo.loop_delay_monitor(Assembly(testbed.parse(bed)))
    assert block.member.phases == frozenset()


def test_a_simulated_testbed_is_refused():
    bed = testbed.parse("{version: 1, nodes: [{name: ap1}, {name: ap2}]}")
    with pytest.raises(ValueError, match="frontend is not usrp"):
        dmimo.loop_delay_monitor(Assembly(bed))

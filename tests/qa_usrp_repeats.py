# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock-step phases on virtual USRPs in which a burst is not sent: repeated as a whole, and as good as ever."""

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from graph import message_sink
from virtual_usrp_graph import true_gains

BEAMSYNC = """
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp: {loop_delay: given, radios: [{name: rack, args: ARGS}]}
nodes:
  - {name: ap1, num_ports: 1, radio: {channels: [0]}}
  - {name: ap2, num_ports: 2, radio: {channels: [2, 3]}}
  - {name: ue1, kind: ue, radio: {channels: [1]}}
slots: {slot_samples: 512, lead_samples: 16, prefix_samples: 32, pilot_samples: 128, watchdog_s: 2}
beamsync: {sync_samples: 128, linewidth_hz: 1.0e-5, drift_hz: 0.01}
"""
BIDIRECTIONAL = """
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp: {loop_delay: given, radios: [{name: rack, args: ARGS}]}
nodes:
  - {name: trp1}
  - {name: trp2}
  - {name: ue1, kind: ue, num_ports: 2}
slots: {slot_samples: 512, pilot_samples: 256, num_subcarriers: 192, watchdog_s: 2}
bidirectional: {patterns: 1, pattern_s: 0.1, linewidth_hz: 1.0e-5, drift_hz: 0.01}
"""


@pytest.fixture(autouse=True, scope="module")
def virtual_usrp():
    virtual.use()


def bursts_before(assembly, phase, board, number):
    """How many bursts the first streamers of a board's nodes send before slot `number` of a phase."""
    nodes = assembly.radios()["rack"].nodes
    senders = {name for name, ports in nodes.items() if ports[0].channel // 2 == board}
    first = assembly.schedule.phase(phase).first + number
    return sum(len(senders.intersection(slot.transmitters)) for slot in assembly.schedule.slots[:first])


def run(text, tmp_path, phase, number, board, fault, protocol=None):
    """Assembly, outcome, slots granted more than once, and log of a run with a fault in one slot."""
    log, bed = tmp_path / "log.json", text.replace("ARGS", '"type=virtual"')
    place = bursts_before(Assembly(testbed.parse(bed), protocol=protocol), phase, board, number)
    arguments = virtual.arguments(num_mboards=2, log=log, seed=5, noise_db=-70, **{fault: f"{place}@{board}"})
    assembly = Assembly(testbed.parse(text.replace("ARGS", f'"{arguments}"')), protocol=protocol)
    flowgraph, control = flowgraphs.testbed_flowgraph(assembly), message_sink()
    flowgraph.msg_connect(flowgraph.scheduler, "control", control, "in")
    outcome = flowgraphs.run(flowgraph, timeout_s=60)
    granted = [grant for message in control.messages if messages.kind(message) == "grant"
               for grant in messages.grants(message)]
    return assembly, outcome, [grant.slot for grant in granted if grant.attempt > 0], log


def whole_beginning(repeated, phase):
    """Whether what was repeated is a phase from its first slot on, as far as it had come, once."""
    return len(repeated) >= 1 and repeated == list(phase.slots[:len(repeated)])


@pytest.mark.parametrize("fault", ["late", "lost_ack"])
def test_a_bidirectional_exchange_is_repeated_and_calibrates(tmp_path, fault):
    assembly, outcome, repeated, log = run(BIDIRECTIONAL, tmp_path, "exchange", 0, 0, fault)
    assert outcome.error is None
    assert whole_beginning(repeated, assembly.schedule.phase("exchange"))
    gains = true_gains(log)
    errors = np.angle(outcome.estimate.c * gains[[0, 1], 0] / gains[0, [0, 1]])
    assert abs(errors[1] - errors[0]) < 5 * outcome.estimate.phase_std_rad[1]


@pytest.mark.parametrize(("phase", "number", "board", "fault"), [
    ("frequency", 0, 1, "late"), ("phase", 0, 0, "lost_ack"), ("phase", 1, 1, "underflow")])
def test_a_stage_of_beamsync_is_repeated_and_synchronises(tmp_path, phase, number, board, fault):
    assembly, outcome, repeated, _ = run(BEAMSYNC, tmp_path, phase, number, board, fault, "sync")
    assert outcome.error is None
    assert whole_beginning(repeated, assembly.schedule.phase(phase))
    assert outcome.report["doubts"] == []

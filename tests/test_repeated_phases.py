# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock-step phase in which a radio has not sent a burst is repeated, and the run is as good as if it had."""

from functools import partial

import bidirectional_beds
import numpy as np
import pytest
import test_beamsync
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from radio_run import RadioRun
from test_beamsync import AirNetwork, make, phase_left
from test_bidirectional_run import NO_CFO, NO_NOISE, ONCE, SINGLE, WHOLE_CLOCKS, largest

OFFSETS = {"a": 40.0, "b": -210.0, "c": 95.0, "u": 30.0}


def slots_of(schedule, names):
    """Slots of the phases with these names."""
    return [schedule.slots[index] for phase in schedule.phases if phase.name in names for index in phase.slots]


def followed(monkeypatch, unsent=(), **options):
    """A run of BeamSync: the run, and the greatest phase that is left between leader and followers."""
    monkeypatch.setattr(test_beamsync, "DirectRun", partial(RadioRun, unsent=unsent))
    run, network, roles, _ = make(AirNetwork(cfo_hz=OFFSETS), **options)
    run.run()
    left = [phase_left(network, role, name, run.end_sample) for name, role in roles.items()]
    return run, np.abs(left).max()


@pytest.mark.parametrize("options", [{}, {"multiplexing": "subbands"}, {"rounds": 2}], ids=str)
@pytest.mark.parametrize("phase", ["frequency", "phase"])
def test_beamsync_is_exact_whichever_burst_was_not_sent(monkeypatch, phase, options):
    run, _ = followed(monkeypatch, **options)
    own = slots_of(run._schedule, [phase])
    assert set(run.attempts.values()) == {1}
    for slot in own:
        run, left = followed(monkeypatch, [(slot.index, 0, slot.transmitters[-1])], **options)
        again = {index for index, attempts in run.attempts.items() if attempts > 1}
        assert run.error is None
        assert again <= {one.index for one in own}
        assert {one.index for one in own if one.index <= slot.index} <= again
        assert left < 1e-3


def test_a_burst_that_is_not_sent_spoils_a_phase_that_is_not_repeated(monkeypatch):
    """Where the radio confirms what it has not sent: the test above has something to see."""
    monkeypatch.setattr(RadioRun, "_confirm", lambda self, grant, nodes: [
        action for node in nodes for port in range(self._ports[node])
        for action in self._scheduler.sent(node, port, grant.start + self._schedule.slot_samples)])
    run, _ = followed(monkeypatch)
    signal = slots_of(run._schedule, ["phase"])[1]
    run, left = followed(monkeypatch, [(signal.index, 0, signal.transmitters[0])])
    assert "could not be trusted" in run.error
    assert left > 0.01


def exchanged(monkeypatch, unsent, *changes):
    """A bidirectional run, with its run of slots."""
    runs = []

    def begin(*parts, **options):
        runs.append(RadioRun(*parts, unsent=unsent, **options))
        return runs[-1]

    monkeypatch.setattr(bidirectional_beds, "DirectRun", begin)
    played = bidirectional_beds.Played(bidirectional_beds.changed(bidirectional_beds.SMALL, *changes), verify=False)
    assert played.error is None
    return played, runs[0]


def test_a_bidirectional_exchange_is_exact_whichever_burst_was_not_sent(monkeypatch):
    changes = (NO_NOISE, ONCE, *NO_CFO, *WHOLE_CLOCKS)
    undisturbed, _ = exchanged(monkeypatch, [], *changes)
    own = slots_of(undisturbed.assembly.schedule, ["exchange"])
    for slot in own:
        played, run = exchanged(monkeypatch, [(slot.index, 0, slot.transmitters[0])], *changes)
        assert {one.index for one in own if one.index <= slot.index} <= {
            index for index, attempts in run.attempts.items() if attempts > 1}
        assert largest(played) < SINGLE


@pytest.mark.parametrize("phase", ["exchange", "tracking"])
def test_bidirectional_runs_with_noise_and_offsets_are_as_good_with_a_repeated_phase(monkeypatch, phase):
    bed = ("patterns: 2", "patterns: 3")
    undisturbed, _ = exchanged(monkeypatch, [], bed)
    slot = slots_of(undisturbed.assembly.schedule, [phase])[1]
    spoiled, run = exchanged(monkeypatch, [(slot.index, attempt, slot.transmitters[-1]) for attempt in (0, 2)], bed)
    assert run.attempts[slot.index] == 5  # in three patterns
    assert spoiled.report["doubts"] == undisturbed.report["doubts"]
    for key in ("alignment_error", "phase_error_deg"):
        assert spoiled.report[key] < 3 * undisturbed.report[key]


def test_a_sweep_in_lock_step_is_exact_too(monkeypatch):
    bed = """
version: 1
nodes:
  - {name: ap1, num_ports: 2}
  - {name: ap2, num_ports: 2}
propagation: {delays: false}
noise: {snr_db: null}
slots: {window: 1, slot_samples: 512}
"""
    assembly = Assembly(testbed.parse(bed))
    network, collectors = assembly.network(), assembly.collectors()
    roles = {name: assembly.roles(name) for name in assembly.schedule.nodes}
    slot = assembly.schedule.slots[2]
    run = RadioRun(assembly.schedule, network, roles, list(collectors.values()),
                   unsent=[(slot.index, 0, slot.transmitters[0])])
    assert run.run() is None
    assert run.attempts[0] == 2
    assert assembly.truth(network, collectors["calibrator"].calibration)["alignment_error"] < 1e-9

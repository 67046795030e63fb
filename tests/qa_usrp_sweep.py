# SPDX-License-Identifier: GPL-3.0-or-later
"""A beam sweep on virtual USRPs in which something goes wrong: what is repeated, and what ends the run by name."""

import functools
import re
import threading

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly
from graph import wait_for
from virtual_usrp_graph import true_gains

SWEEP = """
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp:
  loop_delay: given
  radios: RADIOS
nodes:
  - {name: ap1, num_ports: 2, panel: PANEL}
  - {name: ap2, num_ports: 2, panel: PANEL, radio: {name: LAST}}
slots: {slot_samples: 512, window: 16, watchdog_s: WATCHDOG}
"""
FIRST_SLOT_S = 0.1  # after the streams' begin: the lead
SHORT, MIDDLE, LONG = 4, 8, 32  # beams of a port: 32 slots of half a millisecond, 128 or 2048
MIDDLE_S = 1.2  # from the command to stream, somewhat before the next second, into the long sweep


@pytest.fixture(autouse=True, scope="module")
def virtual_usrp():
    virtual.use()


class Sweep:
    """The sweep of two access points of two ports each on one radio of two boards, or on two radios of one."""

    def __init__(self, tmp_path, num_radios=1, beams=SHORT, watchdog_s=2, **options):
        self.log = tmp_path / "log.json"
        options = {"seed": 3, "log": self.log, "noise_db": -100, **options}
        if num_radios == 1:
            rows = [{"num_mboards": 2}]
        else:
            rows = [{"medium": tmp_path.name, "first_board": board, "serial": f"R{board}V"} for board in range(2)]
        names = [f"rack{number}" for number in range(num_radios)]
        radios = [f"{{name: {name}, args: \"{virtual.arguments(**row, **options)}\"}}"
                  for name, row in zip(names, rows, strict=True)]  # fmt: skip
        text = SWEEP.replace("RADIOS", f"[{', '.join(radios)}]").replace("LAST", names[-1])
        text = text.replace("PANEL", f"{{num_antennas: {beams}, beams: {list(range(beams))}}}")
        text = text.replace("WATCHDOG", str(watchdog_s))
        self.assembly = Assembly(testbed.parse(text))
        self.flowgraph = flowgraphs.testbed_flowgraph(self.assembly)
        self.scheduler = self.flowgraph.scheduler

    def run(self):
        """What the calibration gives, and the error that ended the run, None for none."""
        outcome = flowgraphs.run(self.flowgraph, timeout_s=60)
        return outcome.estimate, outcome.error

    @property
    def repeated(self):
        """Slots that were sent more than once."""
        return self.scheduler.releases - len(self.assembly.schedule.slots)

    def truth(self):
        """c of all ports by that of the first, from the gains y[i, j] / y[j, i] = c_j / c_i of the device's log."""
        gains = true_gains(self.log)
        return gains[0] / gains[:, 0]


@pytest.mark.parametrize(
    ("fault", "repeated"),
    [
        ({}, 0),
        ({"late": "5@1"}, 1),
        ({"underflow": "9@0"}, 1),
        ({"lost_ack": "12@0"}, 1),
        # In the 11th slot.
        ({"overflow": FIRST_SLOT_S + 5300e-6, "after_overflow": "continue", "overflow_gap": 100e-6}, 1),
    ],
    ids=["no fault", "late burst", "underflow", "lost acknowledgement", "overflow"],
)
def test_a_beam_sweep_calibrates_the_boards_and_repeats_what_went_wrong(tmp_path, fault, repeated):
    sweep = Sweep(tmp_path, **fault)
    calibration, error = sweep.run()
    assert error is None
    assert sweep.repeated == repeated
    assert np.all(calibration.trusted)
    assert np.abs(calibration.c / sweep.truth() - 1) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("after", ["restart", "stop"])
def test_an_overflow_that_ends_the_streams_costs_repeated_slots_only(tmp_path, monkeypatch, after):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_control.RESTART_TIMEOUT_S", 60.0)  # it comes with every stream
    sweep = Sweep(tmp_path, beams=MIDDLE, overflow=0.5, after_overflow=after, watchdog_s=20)
    calibration, error = sweep.run()
    assert error is None
    assert len(virtual.read_log(sweep.log, "overflow")) >= 2  # one of each node
    assert sweep.repeated > 0
    assert np.abs(calibration.c / sweep.truth() - 1) == pytest.approx(0, abs=1e-3)


def test_two_radios_are_aligned_and_calibrate_as_one(tmp_path):
    sweep = Sweep(tmp_path, num_radios=2)
    calibration, error = sweep.run()
    assert error is None
    assert sweep.repeated == 0
    assert np.abs(calibration.c / sweep.truth() - 1) == pytest.approx(0, abs=1e-3)




@pytest.mark.parametrize(
    ("num_radios", "fault", "named"),
    [
        (1, {"vanish_after": f"{MIDDLE_S}:1"}, r"radio rack0: board 1 \(V1\) no longer answers"),
        (2, {"vanish_after": f"{MIDDLE_S}:0"}, r"radio rack[01]: board 0 \(R[01]V0\) no longer answers"),
        (1, {"ref_lost": f"{MIDDLE_S}:1"}, r"radio rack0: its epoch has ended: board 1 \(V1\) has lost its reference"),
        (1, {"clock_jump": f"{MIDDLE_S}:1:1"}, r"rack0: its epoch has ended: board 1 \(V1\) reads \d+ s at a PPS"),
        (1, {"overflow": 0.4, "after_overflow": "continue", "overflow_shift": -300000},
         r"rack0: its epoch has ended: .* its time: time went back"),
        (1, {"pps_skew": "1:1"}, r"radio rack0: board 1 \(V1\) reads \d+ s at a PPS edge where others read"),
    ],
)
def test_a_board_that_is_lost_or_out_of_step_ends_the_run_by_name(tmp_path, num_radios, fault, named):
    sweep = Sweep(tmp_path, num_radios, LONG, **fault)
    calibration, error = sweep.run()
    assert calibration is None
    assert re.search(named, error)
    if "pps_skew" not in fault:
        assert 0 < sweep.scheduler.completed < len(sweep.assembly.schedule.slots)


def test_a_board_whose_bursts_are_never_sent_ends_the_run_by_name(tmp_path):
    sweep = Sweep(tmp_path, beams=1, late=[f"{burst}@1" for burst in range(20)])
    calibration, error = sweep.run()
    assert calibration is None
    assert "board 1" in error
    assert "too late" in error


def test_a_retune_in_the_run_ends_it(tmp_path):
    sweep = Sweep(tmp_path, beams=LONG)
    radio = sweep.flowgraph.radios["rack0"]
    tuning = threading.Thread(target=lambda: wait_for(lambda: sweep.scheduler.completed > 100) or radio.retune(2.5e9))
    tuning.start()
    calibration, error = sweep.run()
    tuning.join()
    assert calibration is None
    assert error == "radio rack0: its epoch has ended: all ports tuned to 2500 MHz"


def test_runs_without_end_calibrate_anew_after_a_lost_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(flowgraphs, "slot_scheduler", functools.partial(flowgraphs.slot_scheduler, runs=0))
    sweep = Sweep(tmp_path, ref_lost=f"{MIDDLE_S}:1:0.5")
    collector, radio = sweep.flowgraph.collectors["calibrator"].member, sweep.flowgraph.radios["rack0"]

    def right():
        found = collector.calibration
        return found is not None and np.all(np.abs(found.c / sweep.truth() - 1) < 1e-3)

    sweep.flowgraph.start()
    try:
        wait_for(right)
        before, epoch = sweep.truth(), radio.epoch
        wait_for(lambda: radio.epoch > epoch and not np.allclose(sweep.truth(), before))
        wait_for(right)
        assert sweep.scheduler.error is None
    finally:
        sweep.flowgraph.stop()
        sweep.flowgraph.wait()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The role blocks made of a testbed: with transmitter and receiver beside them they do what a node does."""

import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo import records, testbed
from gnuradio.dmimo.assembly import Assembly
from wired_nodes import wire_nodes

TEXT = """
version: 1
node_defaults: {panel: {num_antennas: 8, beams: [0, 3]}}
nodes: [{name: ap1, num_ports: 2}, {name: ap2}, {name: ue1, kind: ue}]
beam_sweep: {passes: 2}
slots: {slot_samples: 512}
noise: {snr_db: 30}
verification: {repeats: 2, random_starts: 4}
"""
LIMIT_S = 60.0


class wired(gr.top_block):
    """A run whose nodes are wired from role, transmitter and receiver."""

    def __init__(self, assembly, make_role, epoch=0, filename=""):
        gr.top_block.__init__(self)
        network = assembly.network()
        self.scheduler = dmimo.slot_scheduler(assembly.schedule, watchdog_s=3.0, epoch=epoch)
        self.air = dmimo.simulated_network(network)
        self.collectors = [dmimo.calibrator(assembly, filename),
                           *([dmimo.verifier(assembly)] if assembly.verifies else [])]
        self.parts = wire_nodes(self, assembly, network, make_role, self.collectors)

    def run_to_the_end(self):
        self.start()
        finished = self.scheduler.finished_event.wait(LIMIT_S)
        self.stop()
        self.wait()
        assert finished
        assert self.scheduler.error is None


def test_beam_sweep_roles_calibrate_like_nodes_do():
    assembly = Assembly(testbed.parse(TEXT), verify=False)
    flowgraph = wired(assembly, dmimo.beam_sweep_role)
    flowgraph.run_to_the_end()
    truth = assembly.truth(flowgraph.air._network, flowgraph.collectors[0].estimate)
    assert truth["alignment_error"] < 1e-3


def test_the_calibration_file_carries_the_epoch_of_the_run(tmp_path):
    assembly, path, epoch = Assembly(testbed.parse(TEXT), verify=False), tmp_path / "c.h5", 1_700_000_000_000_001
    wired(assembly, dmimo.beam_sweep_role, epoch, str(path)).run_to_the_end()
    assert records.load_calibration(path, assembly.testbed, epoch).epoch == epoch
    with pytest.raises(records.RecordError, match=f"calibration of epoch {epoch}, now it is {epoch + 1}"):
        records.load_calibration(path, assembly.testbed, epoch + 1)


def test_verification_roles_sweep_and_then_transmit_jointly():
    assembly = Assembly(testbed.parse(TEXT))
    flowgraph = wired(assembly, dmimo.verification_role)
    flowgraph.run_to_the_end()
    report = flowgraph.collectors[1].report
    assert abs(report["coherent_gain_db"] - report["ideal_gain_db"]) < 0.2
    assert report["coherent_gain_db"] > 1.0


def test_role_blocks_say_which_one_the_testbed_needs():
    bed = testbed.parse(TEXT)
    with pytest.raises(ValueError, match="use beam_sweep_role"):
        dmimo.verification_role(assembly=Assembly(bed, verify=False), name="ap1")
    with pytest.raises(ValueError, match="has none for slots of purpose"):
        dmimo.beam_sweep_role(assembly=Assembly(bed), name="ap1")


def test_unknown_node_is_named():
    with pytest.raises(ValueError, match="name = 'ap9'"):
        dmimo.verification_role(assembly=Assembly(testbed.parse(TEXT)), name="ap9")

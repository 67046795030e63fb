# SPDX-License-Identifier: GPL-3.0-or-later
"""The role blocks made of a testbed: with transmitter and receiver beside them they do what a node does."""

import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo import records, testbed
from gnuradio.dmimo.assembly import Assembly

TEXT = """
version: 1
node_defaults: {panel: {num_antennas: 8, beams: [0, 3]}}
nodes: [{name: ap1, num_ports: 2}, {name: ap2}, {name: ue1, kind: ue}]
beam_sweep: {passes: 2}
slots: {slot_samples: 512}
noise: {snr_db: 30}
verification: {repeats: 2, random_starts: 4}
"""
LIMIT_S = 20.0


class wired(gr.top_block):
    """A run whose nodes are wired from role, transmitter and receiver."""

    def __init__(self, assembly, make_role, epoch=0, filename=""):
        gr.top_block.__init__(self)
        bed, network = assembly.testbed, assembly.network()
        self.scheduler = dmimo.slot_scheduler(assembly.schedule, watchdog_s=3.0, epoch=epoch)
        self.air = dmimo.simulated_network(network)
        self.collectors = [dmimo.calibrator(assembly, filename),
                           *([dmimo.verifier(assembly)] if assembly.verifies else [])]
        self.parts = []
        for node in bed.nodes:
            role = make_role(assembly=assembly, name=node.name)
            transmitter = dmimo.burst_transmitter(node.num_ports)
            receiver = dmimo.burst_receiver(node.name, node.num_ports, bed.slots.slot_samples, bed.samp_rate)
            self.parts += [role, transmitter, receiver]
            ports = network.ports(node.name)
            for own, port in enumerate(range(ports.start, ports.stop)):
                self.connect((transmitter, own), (self.air, port), (receiver, own))
            self.msg_connect(self.scheduler, "control", role, "control")
            self.msg_connect(role, "tx", transmitter, "bursts")
            self.msg_connect(role, "end", transmitter, "end")
            self.msg_connect(role, "arm", receiver, "grants")
            self.msg_connect(receiver, "bursts", role, "rx")
            for source, port in ((role, "status"), (role, "error"), (receiver, "error")):
                self.msg_connect(source, port, self.scheduler, "status")
            for collector in self.collectors:
                self.msg_connect(role, "results", collector, "results")
        for collector in self.collectors:
            self.msg_connect(self.scheduler, "phases", collector, "phases")
            self.msg_connect(collector, "products", self.scheduler, "products")
            self.msg_connect(collector, "error", self.scheduler, "status")

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

# SPDX-License-Identifier: GPL-3.0-or-later
"""Testbeds of bidirectional runs for the tests, and whole runs of them without GNU Radio."""

from gnuradio.dmimo import reports, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.direct import DirectRun

# Five ports on two TRPs and two UEs, 120 kHz spacing at 128 points: links have 12 elements, 9 subcarriers apart.
SMALL = """
version: 1
seed: 1
samp_rate: 15.36e+6
center_freq: 3.5e+9
node_defaults: {hardware: {gain_std_db: 1.0}}
nodes:
  - {name: trp1, num_ports: 2, oscillator: {cfo_hz: 41}, clock: {offset_samples: 0.3}}
  - {name: trp2, oscillator: {cfo_hz: -70}, clock: {offset_samples: -0.4}}
  - {name: ue1, kind: ue, oscillator: {cfo_hz: 64}, clock: {offset_samples: -0.2}}
  - {name: ue2, kind: ue, num_ports: 2, oscillator: {cfo_hz: -22}, clock: {offset_samples: 0.5}}
propagation: {delays: false, num_taps: 3, delay_spread_s: 5.0e-8}
noise: {snr_db: 40}
slots: {slot_samples: 288, lead_samples: 8, prefix_samples: 32, pilot_samples: 128, num_subcarriers: 108,
        num_subbands: 12}
verification: {uplink_repeats: 2, repeats: 2, random_starts: 2}
bidirectional: {patterns: 2, pattern_s: 4.0e-3, tracking: wideband}
"""


def changed(text, *changes):
    """Testbed of a text with replacements (old, new), each of which must be there to be replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return testbed.parse(text)


class Played:
    """A run in a loop without GNU Radio: its report, and what it was made of."""

    def __init__(self, bed, verify=True):
        self.assembly = Assembly(bed, verify=verify)
        self.network, self.collectors = self.assembly.network(), self.assembly.collectors()
        roles = {name: self.assembly.roles(name) for name in self.assembly.schedule.nodes}
        self.products = {}
        run = DirectRun(self.assembly.schedule, self.network, roles, [*self.collectors.values(), self],
                        max_attempts=bed.slots.max_attempts)
        self.error = run.run()
        self.report = reports.report(reports.Run(self.assembly, self.network, self.collectors, self.error,
                                                 run.releases, run.end_sample))

    phases = frozenset()

    def update(self, product):
        """Keep the last product of each phase, as a collector without phases of its own."""
        self.products[product.phase] = product.values

    @property
    def exchange(self):
        """The collector that calibrates."""
        return self.collectors["bidirectional"].members["exchange"]

    @property
    def training_beams(self):
        """What the beam training chose, as every role was told."""
        return self.products["beam_training"]

    def rows(self, names):
        """Ports of the network that these nodes have."""
        return [port for name in names for port in range(*self.network.ports(name).indices(self.network.num_ports))]

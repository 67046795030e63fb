# SPDX-License-Identifier: GPL-3.0-or-later
"""BeamSync through the samples of the simulated network, against the matrix model of the same channels."""

import itertools

import numpy as np
import pytest
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.core import beamsync
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.experiments import beamsync_model as model
from gnuradio.dmimo.protocols.internal_calibration import PHASE as INTERNAL
from gnuradio.dmimo.protocols.slots import Product

PORTS, RATE, PILOTS, SAMPLES, LINEWIDTH = 8, 1e6, 32, 96, 0.5
TESTBED = """
version: 1
seed: {seed}
samp_rate: 1.0e+6
nodes:
  - {{name: a, num_ports: 8, oscillator: {{cfo_hz: 30, linewidth_hz: {linewidth}}}}}
  - {{name: b, num_ports: 8, oscillator: {{cfo_hz: -45, linewidth_hz: {linewidth}}}}}
propagation: {{delays: false, coupling_db: 0}}
noise: {{snr_db: {snr_db}}}
slots: {{slot_samples: 448, pilot_samples: 32, prefix_samples: 16, lead_samples: 16, num_subcarriers: 24,
         num_subbands: 1}}
beamsync: {{sync_samples: 96, linewidth_hz: {linewidth}, joint: {joint}, returns: {returns}, waveform: gaussian,
            min_interval_s: 0.01, max_interval_s: 0.01, internal_calibration: ml, frequency_repeats: 16}}
"""


class TrueInternal:
    """Publishes the true internal calibration: its errors are not what is compared."""

    def __init__(self, network):
        self.phases, self.network = frozenset({INTERNAL}), network

    def update(self, product):
        pass

    def produce(self, phase, grants, results):
        c = self.network.true_calibration(0)
        return Product(phase, {"internal_c": np.concatenate([c[:PORTS] / c[0], c[PORTS:] / c[PORTS]])})


def through_samples(seed, exchanges, **options):
    """Errors (exchanges,) of the measured phases of one network, their predicted variances, its effective channel."""
    assembly = Assembly(testbed.parse(TESTBED.format(seed=seed, **options)), protocol="sync")
    network = assembly.network()
    monitor = assembly.collectors()["beamsync"].members["beamsync"]
    others = [monitor, TrueInternal(network)]
    roles = {name: assembly.roles(name) for name in assembly.schedule.nodes}
    run = DirectRun(assembly.schedule, network, roles, others, until_sample=exchanges * 10_000)
    assert run.run() is None
    history = [entry["followers"]["b"] for entry in monitor.history if entry["phase"] == "phase"]
    errors = []
    for before, after in itertools.pairwise(history):
        c = network.true_calibration(after["measured_sample"])
        late = (after["measured_sample"] - before["sample"]) / RATE
        applied = before["turn_rad"] + 2 * np.pi * before["turn_hz"] * late
        truth = np.angle(c[0] / c[PORTS] * np.exp(-1j * applied))
        errors.append(np.angle(np.exp(1j * (after["measured_rad"] - truth))))
    beams = np.zeros(2 * PORTS, int)
    # G_e = D_rA G D_rB: the first antennas' t / r is apart in the matrix model, other antennas are calibrated to them.
    c = network.true_calibration(0)
    h = network.true_channel("a", "b", beams, 0)
    variances = np.square([after["measured_std_rad"] for after in history[1:]])
    return np.array(errors), variances, h / c[None, PORTS:], c[0], c[PORTS]


def in_the_matrix_model(channel, snr_db, joint, returns, trials=4000):
    """Errors (trials,) for the same channel, with phase noise as in the network."""
    g_e, c_leader, c_follower = channel
    rng = np.random.default_rng(77)
    draws = model.draw_pairs(rng, trials, PORTS, PORTS, SAMPLES)
    draws = draws._replace(g_e=np.broadcast_to(g_e, draws.g_e.shape), c_leader=np.full(trials, c_leader),
                           c_follower=np.full(trials, c_follower))
    noise_var = 10 ** (-snr_db / 10)
    a = model.pilot_direction(draws, noise_var, pilot_energy=PILOTS)
    x = beamsync_waveform()
    slot = 448
    steps = rng.normal(0, np.sqrt(2 * 2 * np.pi * LINEWIDTH / RATE), (trials, slot + SAMPLES))
    psi = np.cumsum(steps, axis=1)
    # The phase belongs to the middle of the centroids in stages II and III; there phi = 2 psi is the truth.
    centre = round(float(beamsync.centroid(x)))
    psi -= psi[:, centre + slot // 2][:, None]
    u = model.return_samples(rng, draws, a, noise_var, x, stage_two=psi[:, :SAMPLES], stage_three=psi[:, slot:],
                             returned="matched" if returns == "matched" else "conjugate")
    found = beamsync.return_estimate(u[:, None, :], np.ones(1), x, 1 / RATE, joint=joint,
                                     returned="matched" if returns == "matched" else "conjugate")
    return found.phase_rad


def beamsync_waveform():
    from gnuradio.dmimo.core.sync_burst import sync_waveform

    return sync_waveform("gaussian", SAMPLES, seed=3)


@pytest.mark.parametrize(("snr_db", "joint", "returns"),
                         [(20, False, "amplify"), (20, True, "amplify"), (0, False, "amplify"), (0, False, "matched")])
def test_errors_through_samples_are_those_of_the_matrix_model(snr_db, joint, returns):
    exchanges = 400
    errors, variances, *channel = through_samples(
        3, exchanges, snr_db=snr_db, joint=str(joint).lower(), returns=returns, linewidth=LINEWIDTH)
    expected = in_the_matrix_model(channel, snr_db, joint, returns)
    ratio = np.mean(errors**2) / np.mean(expected**2)
    assert abs(ratio - 1) < 4 * np.sqrt(2 / len(errors) + 2 / len(expected))
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors))
    # Phase noise between the stages is in the prediction; within a burst, an eighth of it here, the tracker adds it.
    assert abs(np.mean(errors**2 / variances) - 1) < 0.15 + 4 * np.sqrt(2 / len(errors))

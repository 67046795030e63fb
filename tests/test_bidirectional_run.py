# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole bidirectional runs of testbeds on the simulated network, against the truth, the bounds and the matrix model."""

import numpy as np
import pytest
from bidirectional_beds import SMALL, Played, changed
from gnuradio.dmimo.core.bidirectional import joint_ml
from gnuradio.dmimo.core.bidirectional_bounds import element_variance, link_laplacian_pinv
from gnuradio.dmimo.experiments import bidirectional_exchange as model_exchange
from gnuradio.dmimo.experiments.bidirectional_model import Drop, Scene

NO_NOISE = ("snr_db: 40", "snr_db: null")
ONCE = ("patterns: 2", "patterns: 1")
NO_CFO = [(f"cfo_hz: {hertz}", "cfo_hz: 0") for hertz in (41, -70, 64, -22)]
WHOLE_CLOCKS = [("offset_samples: 0.3", "offset_samples: 0"), ("offset_samples: -0.4", "offset_samples: 1"),
                ("offset_samples: -0.2", "offset_samples: -1"), ("offset_samples: 0.5", "offset_samples: 2")]
# Rounding of complex64 is 6e-8 of an element's rms; links fade by up to 20 dB, and two symbols make one coefficient.
SINGLE = 2e-6
TABLE = """
version: 1
seed: 1
samp_rate: 245.76e+6
center_freq: 26.0e+9
node_defaults: {hardware: {gain_std_db: 1.0}}
nodes:
  - {name: trp1, position_m: [0, -15, 8], oscillator: {cfo_hz: 410}, clock: {offset_samples: 1.3}}
  - {name: trp2, position_m: [0, -5, 8], oscillator: {cfo_hz: -700}, clock: {offset_samples: -2.1}}
  - {name: trp3, position_m: [0, 5, 8], oscillator: {cfo_hz: 95}, clock: {offset_samples: 0.4}}
  - {name: trp4, position_m: [0, 15, 8], oscillator: {cfo_hz: -330}, clock: {offset_samples: 2.4}}
  - {name: ue1, kind: ue, position_m: [30, -8, 2], oscillator: {cfo_hz: 640}, clock: {offset_samples: -0.8}}
  - {name: ue2, kind: ue, position_m: [28, 11, 2], oscillator: {cfo_hz: -120}, clock: {offset_samples: 1.9}}
propagation: {kind: geometric, num_paths: 2, rice_factor_db: 12}
noise: {snr_db: 40}
slots: {slot_samples: 2432, lead_samples: 16, prefix_samples: 144, pilot_samples: 2048, num_subcarriers: 1584,
        num_subbands: 132, receive_delay_samples: 24}
verification: {uplink_repeats: 1, repeats: 2, random_starts: 2}
bidirectional: {patterns: 2, pattern_s: 2.5e-3, tracking: wideband}
"""


def sides(played):
    """Names and calibration of both sides, TRPs first."""
    plan = played.assembly.bidirectional.plan
    return ((plan.trps, played.exchange.calibration), (plan.ues, played.exchange.ue_calibration))


def errors(played, conjugated=False):
    """Relative errors of c on all subcarriers against the truth at its reference time, of either side (ports, K)."""
    out, grid = [], played.assembly.bidirectional.plan.grid
    hertz = grid.subcarriers * grid.subcarrier_spacing_hz
    for names, side in sides(played):
        truth = played.network.true_calibration(int(side.reference_time), hertz)[played.rows(names)]
        c = side.c.conj() if conjugated else side.c
        out.append(c[:, None] * np.exp(-2j * np.pi * hertz * side.delay_s[:, None]) / (truth / truth[0]) - 1)
    return out


def largest(played, **options):
    return max(float(np.abs(error).max()) for error in errors(played, **options))


# -- without noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("tracking", ["wideband", "none"])
def test_without_frequency_offsets_both_sides_are_exact_to_single_precision(seed, tracking):
    """Multipath in the prefix, gains of all chains, whole-sample clock offsets; amplitude and phase, the whole band."""
    played = Played(changed(SMALL, NO_NOISE, ONCE, *NO_CFO, *WHOLE_CLOCKS, ("seed: 1", f"seed: {seed}"),
                            ("tracking: wideband", f"tracking: {tracking}")), verify=False)
    assert played.error is None
    assert largest(played) < SINGLE
    assert largest(played, conjugated=True) > 0.5


def test_fractional_clock_offsets_are_as_good_as_their_filters():
    """A filter errs by up to 4e-4 over the central 80 % of the band; C holds four of them, two of each node."""
    played = Played(changed(SMALL, NO_NOISE, ONCE, *NO_CFO), verify=False)
    assert largest(played) < 4 * 4e-4
    delays = [2 * np.array([0, 0, -0.7]), 2 * np.array([0, 0.7, 0.7])]  # of c: twice those of the clocks
    for (_, side), samples in zip(sides(played), delays, strict=True):
        np.testing.assert_allclose(side.delay_s * 15.36e6, samples, atol=0.01)


def test_errors_under_frequency_offsets_are_those_of_interference_between_subcarriers():
    """An element of C errs by pi / sqrt(3) of the offset over the spacing, for each of two symbols.

    85 Hz rms of 120 kHz make 1.8e-3; averaged over 12 elements, but links fade. In proportion to the offsets.
    """
    found = []
    for factor in (1, 10):
        louder = [(f"cfo_hz: {hertz}", f"cfo_hz: {factor * hertz}") for hertz in (41, -70, 64, -22)]
        runs = [Played(changed(SMALL, NO_NOISE, ONCE, *louder, *WHOLE_CLOCKS, ("seed: 1", f"seed: {seed}")),
                       verify=False) for seed in range(1, 7)]
        found.append(np.sqrt(np.mean([np.mean(np.abs(error) ** 2) for run in runs for error in errors(run)])))
        assert found[-1] < 1.8e-3 * factor
    assert found[1] == pytest.approx(10 * found[0], rel=0.25)


@pytest.mark.parametrize("cfo_hz", [0, 1])
def test_200_mhz_and_2048_points_are_as_exact(cfo_hz):
    """Multipath with fractional delays and clocks: filters of 4e-4. With 410 to -700 Hz: 1.5e-2 of an element.

    A carrier offset makes a Zadoff-Chu sounding look late: by 0.003 samples here, 0.008 rad at the ends of the band.
    """
    still = [] if cfo_hz else [(f"cfo_hz: {hertz}", "cfo_hz: 0") for hertz in (410, -700, 95, -330, 640, -120)]
    played = Played(changed(TABLE, NO_NOISE, ONCE, *still), verify=False)
    assert played.error is None
    assert played.exchange.estimate.used.all()
    assert largest(played) < (1.2e-2 if cfo_hz else 4 * 4e-4)
    samples = 2 * np.array([0, -3.4, -0.9, 1.1])
    np.testing.assert_allclose(played.exchange.calibration.delay_s * 245.76e6, samples, atol=0.01)
    frequency = np.array([0, -1110, -315, -740]) if cfo_hz else np.zeros(4)
    np.testing.assert_allclose(played.exchange.calibration.frequency_hz, frequency, atol=2.0)


@pytest.mark.parametrize(("tracking", "pattern_s", "patterns"), [("kalman", 0.01, 12), ("wideband", 0.05, 6)])
def test_tracking_on_demand_follows_sample_clocks_that_drift_with_their_oscillators(tracking, pattern_s, patterns):
    """One exchange, then soundings only; trp2 falls back against trp1 by 10 samples in a second, c by 20."""
    clocks = [(f"offset_samples: {offset}}}", f"offset_samples: {offset}, follow_cfo: true}}")
              for offset in (1.3, -2.1, 0.4, 2.4, -0.8, 1.9)]
    changes = [("patterns: 2", f"patterns: {patterns}"), ("2.5e-3", str(pattern_s)), ("snr_db: 40", "snr_db: 20"),
               ("wideband", f"{tracking}, calibrate: on_demand")]
    played = Played(changed(TABLE, *clocks, *changes), verify=False)
    report, time_s = played.report, played.exchange.calibration.reference_time / 245.76e6
    assert report["error"] is None
    assert report["calibrations"] == 1
    assert len(report["patterns"]) == 1 + patterns
    assert time_s > (patterns - 1) * pattern_s
    before, after = (report["patterns"][k]["trp_delay_s"][1] for k in (0, -1))
    assert after - before == pytest.approx(2 * (700 + 410) / 26e9 * time_s, rel=0.02)
    # A sample turns the ends of the band by 2.4 rad.
    assert largest(played) < 0.05


# -- beams ------------------------------------------------------------------------------------------------------------

PANELS = [("{name: trp1, num_ports: 2,", "{name: trp1, num_ports: 2, panel: {num_antennas: 4, beams: [0, 1, 2, 3]},"),
          ("{name: trp2,", "{name: trp2, panel: {num_antennas: 4, beams: [0, 2]},"),
          ("{name: ue2, kind: ue,", "{name: ue2, kind: ue, panel: {num_antennas: 2, beams: [0, 1]},")]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_training_picks_the_best_pair_of_each_link_and_calibrates_through_it(seed):
    played = Played(changed(SMALL, ONCE, *PANELS, ("seed: 1", f"seed: {seed}")), verify=False)
    assert played.error is None
    network, grid = played.network, played.assembly.bidirectional.plan.grid
    hertz = grid.subcarriers * grid.subcarrier_spacing_hz
    beams = played.training_beams
    for m, trp in enumerate(("trp1", "trp2")):
        for n, ue in enumerate(("ue1", "ue2")):
            energy = {}
            for pair in np.ndindex(network.nodes[m].panel.num_beams, network.nodes[2 + n].panel.num_beams):
                of_port = np.zeros(network.num_ports, int)
                of_port[network.ports(trp)], of_port[network.ports(ue)] = pair
                energy[pair] = np.sum(np.abs(network.true_channel(trp, ue, of_port, 0, hertz)) ** 2)
            assert (beams["trp_beams"][m, n], beams["ue_beams"][m, n]) == max(energy, key=energy.get)
    assert np.all(played.exchange.estimate.used)
    assert largest(played) < 0.1
    # 40 dB per sample at the mean gain of a pair; the errors are those of noise, within 5 predicted deviations.
    for (_, side), error in zip(sides(played), errors(played), strict=True):
        assert np.all(np.abs(np.angle(1 + error[1:, error.shape[1] // 2])) < 5 * side.phase_std_rad[1:])


def test_joint_transmission_through_the_serving_beams_reaches_the_ideal():
    report = Played(changed(SMALL, ONCE, *PANELS)).report
    for gains in (report, report["uplink"]):
        assert gains["coherent_gain_db"] == pytest.approx(gains["ideal_gain_db"], abs=0.1)


# -- joint transmission -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracking", ["kalman", "wideband"])
@pytest.mark.parametrize("text", [SMALL, TABLE], ids=["128 points", "2048 points"])
def test_coherent_gain_reaches_the_ideal_in_both_directions(text, tracking):
    """Within 0.1 dB at 40 dB; oscillators turn c by many turns between exchange and transmission."""
    report = Played(changed(text, ("wideband", tracking))).report
    assert report["error"] is None
    assert report["calibrations"] == 2
    for gains in (report, report["uplink"]):
        assert gains["coherent_gain_db"] == pytest.approx(gains["ideal_gain_db"], abs=0.1)
        assert gains["ideal_gain_db"] > 1.0
        assert gains["coherent_gain_db"] > gains["uncalibrated_gain_db"] + 1.0
    assert report["doubts"] == []


EIGHT = """
version: 1
seed: 2
samp_rate: 245.76e+6
node_defaults: {{oscillator: {{cfo_hz: 15}}, clock: {{offset_samples: -0.3}}}}
nodes: [{nodes},
  {{name: ue1, kind: ue, oscillator: {{cfo_hz: -20}}}}, {{name: ue2, kind: ue, clock: {{offset_samples: 0.6}}}}]
propagation: {{kind: geometric, num_paths: 0, delays: false}}
noise: {{snr_db: 9.6}}
slots: {{slot_samples: 2368, lead_samples: 8, prefix_samples: 144, pilot_samples: 2048, num_subcarriers: 1584,
        num_subbands: 132}}
verification: {{uplink_repeats: 2, repeats: 4, random_starts: 2, cooperating: [1, 2, 4, 8]}}
bidirectional: {{patterns: 1, pattern_s: 2.0e-3, tracking: wideband}}
"""


def test_snr_rises_by_more_than_5_5_db_per_doubling_of_cooperating_ports():
    """Eight TRPs, each at its own full power, equal path loss, 10.7 dB per resource element; ideal is 6.02 dB."""
    nodes = ", ".join(f"{{name: trp{i}, oscillator: {{cfo_hz: {20 * i - 70}}}}}" for i in range(8))
    report = Played(changed(EIGHT.format(nodes=nodes))).report
    assert report["error"] is None
    found = report["cooperation"]
    assert [row["ports"] for row in found] == [1, 2, 4, 8]
    assert found[0]["snr_db"] == pytest.approx(10.7, abs=1.5)  # of one port, with the gains of its chains
    steps = np.diff([row["snr_db"] for row in found])
    assert np.all(steps > 5.5), steps
    assert np.all(steps < 6.3), steps
    # With exact coefficients the last one would have 18.06 dB more than the first: less than 0.2 dB are lost.
    assert found[-1]["snr_db"] > found[-1]["ideal_snr_db"] - 0.2


# -- with noise -------------------------------------------------------------------------------------------------------

# Three ports on either side: soundings and answers have the same power in an element. Unequal links.
NOISY = """
version: 1
seed: 3
samp_rate: 15.36e+6
node_defaults: {{hardware: {{gain_std_db: 1.0}}}}
nodes:
  - {{name: trp1, oscillator: {{cfo_hz: 41}}, clock: {{offset_samples: 0.3}}}}
  - {{name: trp2, oscillator: {{cfo_hz: -70}}, clock: {{offset_samples: -0.4}}}}
  - {{name: trp3, oscillator: {{cfo_hz: 13}}}}
  - {{name: ue1, kind: ue, oscillator: {{cfo_hz: 64}}, clock: {{offset_samples: -0.2}}}}
  - {{name: ue2, kind: ue, oscillator: {{cfo_hz: -22}}, clock: {{offset_samples: 0.5}}}}
  - {{name: ue3, kind: ue, oscillator: {{cfo_hz: 5}}}}
propagation: {{kind: geometric, num_paths: 0, delays: false, pair_gain_db: {{trp1-ue1: -3, trp2-ue3: 2}}}}
noise: {{snr_db: {snr_db}}}
slots: {{slot_samples: 352, lead_samples: 8, prefix_samples: 32, pilot_samples: 256, num_subcarriers: 216,
        num_subbands: 12}}
bidirectional: {{patterns: {patterns}, pattern_s: 0.5e-3, tracking: none}}
"""


PATTERNS = 250


class Noisy:
    """A run of many patterns, with errors of log c (patterns, ports - 1) of both sides and predicted deviations."""

    def __init__(self, snr_db):
        self.played = Played(changed(NOISY.format(snr_db=snr_db, patterns=PATTERNS)), verify=False)
        entries = [entry for entry in self.played.exchange.history if entry["phase"] == "exchange"]
        assert [entry["event"] for entry in entries] == ["calibrated"] * PATTERNS
        plan, network = self.played.assembly.bidirectional.plan, self.played.network
        self.errors, self.std = {}, {}
        for side, names in (("trp", plan.trps), ("ue", plan.ues)):
            truth = np.array([network.true_calibration(entry["sample"])[self.played.rows(names)] for entry in entries])
            c = np.array([entry[f"{side}_c"] for entry in entries])
            self.errors[side] = np.log(c / truth * truth[:, :1])[:, 1:]
            self.std[side] = np.array([entry[f"{side}_phase_std_rad"] for entry in entries])[:, 1:]


@pytest.fixture(scope="module")
def at_20_db():
    return Noisy(20)


@pytest.fixture(scope="module")
def at_8_db():
    return Noisy(8)


def test_phases_have_their_predicted_deviations(at_20_db):
    """Mean squares over predicted variances, which come from 2 * 24 - 3 residuals of nine links; no bias."""
    for side, errors_ in at_20_db.errors.items():
        squares = np.mean((errors_.imag / at_20_db.std[side]) ** 2, axis=0)
        np.testing.assert_allclose(squares, 1.0, atol=4.5 * np.sqrt(2 / PATTERNS))
        assert np.all(np.abs(errors_.mean(axis=0)) < 4.5 * errors_.std(axis=0) / np.sqrt(PATTERNS))


@pytest.fixture(scope="module")
def tracked():
    """Phase errors in rad, and these over their predicted deviations, at the end of 8 patterns of 12 networks."""
    found = {"kalman": [], "wideband": []}
    for tracking, values in found.items():
        for seed in range(12):
            played = Played(changed(NOISY.format(snr_db=15, patterns=8), ("seed: 3", f"seed: {seed}"),
                                    ("none", tracking), ("0.5e-3", "2.0e-3")), verify=False)
            assert played.error is None
            for names, side in sides(played):
                truth = played.network.true_calibration(int(side.reference_time))[played.rows(names)]
                error = np.angle(side.c / truth * truth[0])[1:]
                values += zip(error, error / side.phase_std_rad[1:], strict=True)
    return {tracking: np.array(values).T for tracking, values in found.items()}


def test_filter_is_as_good_as_it_says(tracked):
    """48 phases, half of which share their reference: 4.5 standard errors of the mean square."""
    assert np.mean(tracked["kalman"][1] ** 2) == pytest.approx(1.0, abs=4.5 * np.sqrt(2 / 24))
    assert np.mean(tracked["kalman"][1] ** 2) > 0.4


def test_filter_is_better_than_the_last_exchange_alone(tracked):
    """It averages 8 exchanges: 0.35 of the deviation if nothing else moved; wideband tracking adds to that of one."""
    rms = {tracking: np.sqrt(np.mean(values[0] ** 2)) for tracking, values in tracked.items()}
    assert rms["kalman"] < 0.7 * rms["wideband"]


def links(played):
    """Channels (M, N) of both directions without noise in units of its deviation, per element, and true c."""
    network, plan = played.network, played.assembly.bidirectional.plan
    beams = np.zeros(network.num_ports, int)
    up, down = (np.array([[network.true_channel(*pair, beams, 0)[0, 0] for pair in row] for row in table])
                for table in ([[(trp, ue) for ue in plan.ues] for trp in plan.trps],
                              [[(ue, trp) for ue in plan.ues] for trp in plan.trps]))
    # All elements of a sounding, and of an answer to all, have the energy of the whole symbol: 216 over 72.
    grid, noise_var = plan.grid, played.network.nodes[0].noise_var
    scale = np.sqrt(3 / (noise_var * grid.num_subcarriers / grid.fft_size))
    c = network.true_calibration(0)
    return scale * up, scale * down, c[: len(plan.trps)], c[len(plan.trps) :]


def matrix_model(played, trials, side, seed=11):
    """Errors (trials, ports - 1) of log c of one side for the same channels, combs and estimator."""
    plan = played.assembly.bidirectional.plan
    up, down, c_trp, c_ue = links(played)
    air = (up / c_ue)[None, :, :, None] * np.ones((trials, 1, 1, 1))
    np.testing.assert_allclose(air[0, ..., 0] * c_trp[:, None], down, rtol=1e-6)  # reciprocal
    zeros = np.zeros((trials, 3))
    drop = Drop(Scene(), c_trp * np.ones((trials, 1)), 1 + zeros, c_ue * np.ones((trials, 1)), 1 + zeros, zeros, zeros,
                zeros, zeros, np.zeros((trials, 3, 0)), np.zeros((trials, 3, 0)), np.zeros(0), air,
                np.zeros(air.shape), np.ones((trials, 3, 3)), np.arange(3), np.arange(3))
    rngs = [np.random.default_rng([seed, trial]) for trial in range(trials)]
    mapping = plan.down if side == "trp" else plan.up
    k = mapping.response_subcarriers
    spacing, limit = plan.grid.subcarrier_spacing_hz, plan.delay_limit_s
    if side == "trp":
        c, truth = model_exchange.exchange(drop, rngs, k, 0.0).c, c_trp
    else:
        c, truth = model_exchange.exchange(drop.swapped(), rngs, k, 0.0).c, c_ue
    found = joint_ml(c, k, spacing, max_delay=min(limit, 0.25 / (9 * spacing))).c_trp
    return np.log(found / truth * truth[0])[:, 1:]


def whitened(errors_, covariance):
    """Mean of e^H S^-1 e over its number of ports: 1 for errors of that covariance, +- 1 / sqrt(ports errors)."""
    return np.mean(np.einsum("ti,ij,tj->t", errors_.conj(), np.linalg.inv(covariance), errors_).real) / errors_.shape[1]


@pytest.mark.parametrize("snr_db", [8, 20])
def test_errors_are_those_of_the_matrix_model(snr_db, request):
    """Amplitudes, phases and what they have in common through the first port, within 4.5 standard errors."""
    run, trials = request.getfixturevalue(f"at_{snr_db}_db"), 2000
    for side, found in run.errors.items():
        expected = matrix_model(run.played, trials, side)
        covariance = expected.T @ expected.conj() / trials
        standard_error = np.sqrt((1 / PATTERNS + 1 / trials) / 2)
        assert abs(whitened(found, covariance) - 1) < 4.5 * standard_error
        for part in (np.real, np.imag):
            ratio = np.mean(part(found) ** 2, axis=0) / np.mean(part(expected) ** 2, axis=0)
            np.testing.assert_allclose(ratio, 1.0, atol=4.5 * np.sqrt(2 / PATTERNS + 2 / trials))


def test_errors_at_20_db_are_near_the_bound(at_20_db):
    """An inverse of a noisy channel and delays that are estimated, too, cost some percent: 5 at most."""
    up, down, _, _ = links(at_20_db.played)
    variance = element_variance(np.abs(up) ** 2, np.abs(down) ** 2)
    for side, v in (("trp", variance), ("ue", variance.T)):
        inverse = link_laplacian_pinv(24 / v)
        difference = np.eye(6)[1:3] - np.eye(6)[0]
        ratio = whitened(at_20_db.errors[side], difference @ inverse @ difference.T)
        standard_error = 1 / np.sqrt(2 * PATTERNS)
        assert 1 - 4.5 * standard_error < ratio < 1.05 + 4.5 * standard_error


@pytest.mark.parametrize("snr_db", ["null", "100", "50"])
@pytest.mark.parametrize("tracking", ["kalman", "wideband"])
def test_weak_links_do_no_harm_where_leakage_exceeds_the_noise(snr_db, tracking):
    """Cross-polarised links 15 dB down: what leaks into them from their neighbours is the same in every sounding."""
    played = Played(changed(
        TABLE, ("node_defaults: {", "node_defaults: {num_ports: 2, "), ("rice_factor_db: 12", "rice_factor_db: 12, "
        "cross_polarisation_db: 15"), ("snr_db: 40", f"snr_db: {snr_db}"),
        ("tracking: wideband", f"tracking: {tracking}")))
    assert played.error is None
    assert played.report["doubts"] == []
    truth = {node.name: node.oscillator.cfo_hz for node in played.assembly.testbed.nodes}
    expected = np.repeat([truth[f"trp{k}"] - truth["trp1"] for k in range(1, 5)], 2)
    for entry in played.report["patterns"]:
        assert entry["event"] != "untrusted"
        assert entry["trp_phase_error_deg"] < 0.5
        assert entry["ue_phase_error_deg"] < 0.5
        np.testing.assert_allclose(entry["trp_frequency_hz"], expected, atol=5.0)

# SPDX-License-Identifier: GPL-3.0-or-later
"""All readings of CARS bursts: exact without noise, on the variance of a two-way layout with it, never worse."""

import numpy as np
import pytest
from gnuradio.dmimo.core.bidirectional import DisconnectedLinksError, joint_ml, link_estimates
from gnuradio.dmimo.core.cars import cars_precoding, equivalent_channel
from gnuradio.dmimo.core.cars_matrix import cross_links, joint_cross
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid

SPACING = 120e3
M, N = 8, 4
FIRST_S, SECOND_S = 1.3e-3, 1.3e-3 + 2 * 8.92e-6
MIDDLE_S = 0.5 * (FIRST_S + SECOND_S)
TABLE = CombMapping(M, N, 196).subcarriers(OfdmGrid())  # (M, N, 49)
LIMIT_S = 25e-9


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


class Drops:
    """Drops of the network of table I: node coefficients, clocks, frequencies, and flights of up to 60 ns."""

    def __init__(self, rng, num, *, num_paths=1, rayleigh=False, clock_s=10e-9):
        self.t, self.r = np.exp(0.1 * rng.normal(size=(2, num, M + N)) + 2j * np.pi * rng.random((2, num, M + N)))
        self.tau, self.cfo_hz = rng.uniform(-clock_s, clock_s, (num, M + N)), rng.uniform(-780, 780, (num, M + N))
        shape = (num, M, N, num_paths)
        self.paths = np.exp(2j * np.pi * rng.random(shape)) * 0.4 ** np.arange(num_paths)
        if rayleigh:
            self.paths = complex_normal(rng, *shape)
        self.flight_s = rng.uniform(0, 60e-9, shape[:3])[..., None] + 50e-9 * np.arange(num_paths)

    def phase(self, k, time_s):
        """LO phase and clock (num, nodes, M', N, K) of each node on the subcarriers k (M', N, K) at a time."""
        turn = 2 * np.pi * (self.cfo_hz * time_s)[..., None, None, None]
        return turn - 2 * np.pi * SPACING * k * self.tau[..., None, None, None]

    def channels(self, k):
        """Uplink G_mn at the second and downlink H_mn at the first time, (num, M, M', N, K) on k (M', N, K)."""
        air = np.einsum(
            "dmnp,dmanpk->dmank",
            self.paths,
            np.exp(-2j * np.pi * SPACING * k[:, :, None] * self.flight_s[:, :, None, :, :, None]),
        )

        def turns(time_s):
            """UE n on its own elements over TRP m on all of them, (num, M, M', N, K)."""
            turn = np.exp(1j * self.phase(k, time_s))
            ue = np.moveaxis(turn[:, M:].diagonal(axis1=1, axis2=3), -1, 2)
            return ue[:, None] / turn[:, :M]

        node = np.index_exp[:, :, None, None, None], np.index_exp[:, None, None, :, None]
        g = self.r[:, :M][node[0]] * self.t[:, M:][node[1]] * air * turns(SECOND_S)
        h = self.t[:, :M][node[0]] * self.r[:, M:][node[1]] * air / turns(FIRST_S)
        return g, h

    def coefficients(self):
        """C (num, M, N) at band centre, at the midpoint, and its delay."""
        c = self.t / self.r * np.exp(4j * np.pi * self.cfo_hz * MIDDLE_S)
        return c[:, None, M:] / c[:, :M, None], 2 * (self.tau[:, None, M:] - self.tau[:, :M, None]), c


def readings(rng, drops, rho_g=np.inf, rho_h=np.inf):
    """E (num, M, M', N, K) through CARS."""
    g, h = drops.channels(TABLE)
    h = np.einsum("dmmnk->dmnk", h)  # the UE hears TRP m on its own comb
    h = h + np.sqrt(1 / rho_h) * complex_normal(rng, *h.shape)
    burst = cars_precoding(h)
    received = g * burst.weights[:, None] + np.sqrt(1 / rho_g) * complex_normal(rng, *g.shape)
    return equivalent_channel(received, np.ones(TABLE.shape[-1]), burst.scale[:, None])


def diagonal(e):
    return np.einsum("...mmnk->...mnk", e)


def errors(links, drops):
    """Mean squares of phase (rad^2), log amplitude and delay (s^2) over the links that count."""
    c, delay, _ = drops.coefficients()
    used = links.used if hasattr(links, "used") else links.trusted
    log = np.log(links.gain / c)[used]
    return np.array([np.mean(log.imag**2), np.mean(log.real**2), np.mean((links.delay_s - delay)[used] ** 2)])


@pytest.mark.parametrize("clock_s", [10e-9, 30e-9])
def test_all_readings_are_exact_without_noise_on_one_path(clock_s):
    """Whatever flights, clocks and frequencies: the products belong to the same midpoint.

    C is unique for differences of clocks up to 65 ns; the products' delays, up to twice those of C, need not be.
    """
    drops = Drops(np.random.default_rng(1), 3, clock_s=clock_s)
    e = readings(np.random.default_rng(0), drops)
    links = cross_links(e, TABLE, SPACING, max_delay=65e-9)
    c, delay, nodes = drops.coefficients()
    assert links.used.all()
    np.testing.assert_allclose(links.gain / c, 1.0, atol=1e-9)
    np.testing.assert_allclose(links.delay_s, delay, atol=1e-17)
    result = joint_cross(e, TABLE, SPACING, max_delay=65e-9)
    np.testing.assert_allclose(result.c_trp, nodes[:, :M] / nodes[:, :1], atol=1e-9)
    np.testing.assert_allclose(result.c_ue, nodes[:, M:] / nodes[:, :1], atol=1e-9)
    np.testing.assert_allclose(result.delay_ue_s, drops.tau[:, M:] - drops.tau[:, :1], atol=1e-17)


def test_each_reading_counts_as_in_the_two_way_layout():
    """An error of one TRP's own reading moves its link by (2 M - 1) / M^2 of it, the other links by -1 / M^2."""
    drops = Drops(np.random.default_rng(2), 20)
    e = readings(np.random.default_rng(0), drops, 1e4, 1e12)
    before = cross_links(e, TABLE, SPACING, max_delay=LIMIT_S).gain
    e[:, 3, 3] *= np.exp(3e-4j)  # a fifth of a standard deviation of the link
    moved = np.angle(cross_links(e, TABLE, SPACING, max_delay=LIMIT_S).gain / before).mean(axis=(0, 2)) / 3e-4
    expected = np.full(M, -1 / M**2)
    expected[3] += 2 / M
    np.testing.assert_allclose(moved, expected, atol=0.02)


@pytest.mark.parametrize(("up_db", "down_db"), [(20.0, 20.0), (20.0, 30.0)])
def test_variance_is_that_of_the_two_way_layout(up_db, down_db):
    """(2 M - 1) / M^2 of the TRPs' noise and all of the UEs': 2.1 and 5.2 dB below the diagonal alone.

    6400 links: 4 standard errors are 7 %, and the weights are estimated. Delays and phases of different TRPs share the
    noise of a burst's elements, so that their number counts, not that of the elements.
    """
    rng = np.random.default_rng(3)
    drops = Drops(rng, 200)
    rho_g, rho_h = 10 ** (up_db / 10), 10 ** (down_db / 10)
    e = readings(rng, drops, rho_g, rho_h)
    own = errors(link_estimates(diagonal(e), TABLE, SPACING, max_delay=LIMIT_S), drops)
    every = errors(cross_links(e, TABLE, SPACING, max_delay=LIMIT_S), drops)
    expected = ((2 * M - 1) / M**2 / rho_g + 1 / rho_h) / (1 / rho_g + 1 / rho_h)
    np.testing.assert_allclose(every / own, expected, rtol=0.1)
    spread = np.sum((TABLE[0, 0] - TABLE[0, 0].mean()) ** 2)
    element = (2 * M - 1) / M**2 / rho_g + 1 / rho_h
    bound = 0.5 * element / 49 * np.array([1, 1, 49 / (2 * np.pi * SPACING) ** 2 / spread])
    # COMB centres lie within 16 of band centre: below 1 % of the phase variance.
    np.testing.assert_allclose(every / bound, 1.0, atol=0.1)


def test_gain_at_the_power_of_table_one_and_with_weaker_ues():
    """10.7 dB per element up: 1.8 dB less variance with the same down, 5 dB with 10 dB more."""
    for down_db, least_db in ((10.7, 1.6), (20.7, 4.6)):
        rng = np.random.default_rng(4)
        drops = Drops(rng, 100)
        e = readings(rng, drops, 10**1.07, 10 ** (down_db / 10))
        own = errors(link_estimates(diagonal(e), TABLE, SPACING, max_delay=LIMIT_S), drops)
        every = errors(cross_links(e, TABLE, SPACING, max_delay=LIMIT_S), drops)
        assert np.all(10 * np.log10(own / every) > least_db), 10 * np.log10(own / every)


@pytest.mark.parametrize(("settings", "least"), [({"num_paths": 3}, 1.3), ({"num_paths": 4, "rayleigh": True}, 0.93)])
@pytest.mark.parametrize("snr_db", [10.7, 25.0])
def test_multipath_costs_most_of_the_gain_at_worst(settings, least, snr_db):
    """Paths 50 ns apart, 8 dB weaker each: most of it remains. Rayleigh paths: hardly a loss up to 25 dB."""
    rng = np.random.default_rng(5)
    drops = Drops(rng, 60, **settings)
    e = readings(rng, drops, 10 ** (snr_db / 10), 10 ** (snr_db / 10))
    own = errors(link_estimates(diagonal(e), TABLE, SPACING, max_delay=LIMIT_S), drops)
    every = errors(cross_links(e, TABLE, SPACING, max_delay=LIMIT_S), drops)
    assert np.all(own / every > least), own / every


def test_nodes_from_all_readings_are_closer_than_from_the_diagonal():
    """Mean square error of log c over all TRPs: the gain of the links carries over to the nodes."""
    rng = np.random.default_rng(6)
    drops = Drops(rng, 200)
    rho_g, rho_h = 10**1.5, 10**2.5
    e = readings(rng, drops, rho_g, rho_h)
    truth = drops.coefficients()[2][:, :M]
    square = []
    for result in (joint_ml(diagonal(e), TABLE, SPACING, max_delay=LIMIT_S, reference=None),
                   joint_cross(e, TABLE, SPACING, max_delay=LIMIT_S, reference=None)):  # fmt: skip
        log = np.log(result.c_trp / truth * np.exp(-1j * np.angle(np.mean(result.c_trp / truth, axis=-1)))[:, None])
        square.append(np.mean(np.abs(log - log.mean(axis=-1, keepdims=True)) ** 2))
    expected = ((2 * M - 1) / M**2 / rho_g + 1 / rho_h) / (1 / rho_g + 1 / rho_h)
    assert square[1] / square[0] == pytest.approx(expected, rel=0.15)


def test_links_without_a_signal_are_left_out():
    rng = np.random.default_rng(7)
    drops = Drops(rng, 2)
    e = readings(rng, drops, 1e5, 1e5)
    whole = cross_links(e, TABLE, SPACING, max_delay=LIMIT_S)
    e[0, 2, :, 1], e[0, :, 5, 0] = np.nan, 3 * complex_normal(rng, M, 49)
    links = cross_links(e, TABLE, SPACING, max_delay=LIMIT_S)
    out = np.zeros((2, M, N), bool)
    out[0, 2, 1] = out[0, 5, 0] = True
    np.testing.assert_array_equal(links.used, ~out)
    np.testing.assert_allclose(links.gain[~out], whole.gain[~out], rtol=0.01)
    assert np.isfinite(links.gain).all()
    np.testing.assert_allclose(links.gain[1], whole.gain[1], rtol=1e-12)
    assert joint_cross(e, TABLE, SPACING, max_delay=LIMIT_S).used.sum() == 2 * M * N - 2
    e[0, :, :, 0] = complex_normal(rng, M, M, 49)
    with pytest.raises(DisconnectedLinksError, match=r"\{UE 0\}"):
        joint_cross(e, TABLE, SPACING, max_delay=LIMIT_S)


def test_one_trp_has_only_its_own_readings():
    rng = np.random.default_rng(8)
    e = readings(rng, Drops(rng, 2), 100.0, 100.0)[:, :1, :1]
    links = cross_links(e, TABLE[:1], SPACING, max_delay=LIMIT_S)
    own = link_estimates(e[:, 0], TABLE[:1], SPACING, max_delay=LIMIT_S)
    np.testing.assert_allclose(links.gain, own.gain)
    np.testing.assert_allclose(links.delay_s, own.delay_s)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"must be \(..., M, M, N, K\)"):
        cross_links(np.ones((M, N, 49)), TABLE, SPACING)
    with pytest.raises(ValueError, match=r"must be \(..., M, M, N, K\)"):
        cross_links(np.ones((M, M, N, 48)), TABLE, SPACING)
    gaps = TABLE.copy()
    gaps[1, 2, 5] += 1
    with pytest.raises(ValueError, match="one comb, shifted"):
        cross_links(np.ones((M, M, N, 49)), gaps, SPACING)

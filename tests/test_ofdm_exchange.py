# SPDX-License-Identifier: GPL-3.0-or-later
"""Symbols of an exchange in slots: soundings heard, answers read, through filters of whole samples."""

import dataclasses

import numpy as np
import pytest
from gnuradio.dmimo.core.cars import equivalent_channel
from gnuradio.dmimo.core.ofdm import CombError, CombMapping, OfdmGrid, pilot_sequence
from gnuradio.dmimo.core.ofdm_exchange import OfdmExchange

P, Q = 3, 2
GRID = OfdmGrid(15e3, 256, 32, 192, skip_dc=True)
EXCHANGE = OfdmExchange(GRID, CombMapping.filling(GRID, P, Q), 400, 16, advance_samples=8)
DELAYS = np.array([0, 3, 17])


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def through(taps, sent, late=0):
    """Slots (R, n) of what is sent (T, n) through filters (R, T, 3) with delays DELAYS + late, nothing from before."""
    received = np.zeros((len(taps), sent.shape[1]), complex)
    for tap, delay in enumerate(DELAYS + late):
        received[:, max(delay, 0) : sent.shape[1] + min(delay, 0)] += (
            taps[..., tap] @ sent[:, max(-delay, 0) : sent.shape[1] - max(delay, 0)]
        )
    return received


def response(taps, subcarriers, late=0):
    """Truth (R, T, ...) at subcarriers (T, ...): sum of taps exp(-2j pi k delay / N)."""
    turn = np.exp(-2j * np.pi * subcarriers[..., None] * (DELAYS + late) / GRID.fft_size)
    return np.sum(taps.reshape(*taps.shape[:2], *(1,) * (subcarriers.ndim - 1), 3) * turn, axis=-1)


@pytest.mark.parametrize("purpose", ["srs", "csi_rs"])
@pytest.mark.parametrize(("latency", "expected", "offset"), [(0, 0, 0), (7, 0, -8), (5, 11, 7)])
def test_all_ports_are_heard_exactly_wherever_the_prefix_holds_their_delays(purpose, latency, expected, offset):
    """From -advance to prefix - advance samples around the expected delay; the delay stays in h."""
    taps = complex_normal(np.random.default_rng(1), Q, P, 3)
    exchange = dataclasses.replace(EXCHANGE, latency_samples=latency, receive_delay_samples=expected)
    received = through(taps, exchange.sounding(purpose), latency + expected + offset)
    h, noise_var, heard = exchange.hear(received, purpose)
    np.testing.assert_allclose(h, response(taps, exchange.sounding_subcarriers, offset), atol=1e-5)
    assert heard.all()
    assert np.all(noise_var < 1e-10)


def test_delay_beyond_the_prefix_is_seen_as_noise():
    taps = complex_normal(np.random.default_rng(1), Q, P, 3)
    assert np.all(EXCHANGE.hear(through(taps, EXCHANGE.sounding("srs"), 30), "srs").noise_var > 1e-3)


def test_other_pilots_do_not_read_the_channel():
    taps = complex_normal(np.random.default_rng(1), Q, P, 3)
    h = EXCHANGE.hear(through(taps, EXCHANGE.sounding("srs")), "csi_rs").h
    truth = response(taps, EXCHANGE.sounding_subcarriers)
    assert np.abs(np.vdot(h, truth)) < 0.3 * np.vdot(truth, truth).real


def test_a_part_of_the_ports_sends_on_its_own_combs():
    whole, middle = EXCHANGE.sounding("srs"), EXCHANGE.sounding("srs", slice(1, 2))
    np.testing.assert_array_equal(middle, whole[1:2])
    _, _, heard = EXCHANGE.hear(middle, "srs")
    np.testing.assert_array_equal(heard, [[False, True, False]])


@pytest.mark.parametrize("full_power", [True, False])
def test_power_of_a_port_is_that_of_a_full_symbol_or_its_share(full_power):
    exchange = dataclasses.replace(EXCHANGE, full_power=full_power)
    bursts = {P: exchange.sounding("srs")}
    bursts[Q] = exchange.answer(np.ones((Q, P, 64)), np.ones((Q, P), bool)).burst
    useful = slice(16 + 32, 16 + 32 + 256)
    for share, burst in bursts.items():
        power = np.mean(np.abs(burst[:, useful]) ** 2, axis=-1)
        np.testing.assert_allclose(power, 1.0 if full_power else 1.0 / share, rtol=1e-5)
        assert not np.any(burst[:, :16])
        assert not np.any(burst[:, useful.stop :])


def test_noise_variance_is_that_of_an_entry():
    """4000 slots of noise: 1 % is 5 standard errors of the worst mean; false alarms at the stated rate."""
    rng = np.random.default_rng(2)
    h, noise_var, heard = EXCHANGE.hear(np.sqrt(0.3) * complex_normal(rng, 4000, 400), "srs")
    assert np.mean(noise_var) == pytest.approx(np.mean(np.abs(h) ** 2), rel=0.01)
    # Unit energy on all 192 of 256 subcarriers: 0.3 * 192 / 256; three times the energy on each of a comb of 3.
    assert np.mean(noise_var) == pytest.approx(0.3 * 192 / 256 / 3, rel=0.01)
    assert np.mean(heard) < 1e-3
    read = EXCHANGE.read(np.sqrt(0.3) * complex_normal(rng, 4000, 400))
    assert np.mean(read.noise_var) == pytest.approx(np.mean(np.abs(read.h) ** 2), rel=0.01)
    assert read.h.shape == (4000, P, Q, 32)
    assert np.mean(read.heard) < 1e-3


@pytest.mark.parametrize("form", ["inverse", "conjugate", "phase"])
@pytest.mark.parametrize("full_power", [True, False])
def test_answers_read_the_ratio_of_the_two_directions(form, full_power):
    """Every port of Q undoes what it heard; each port of P reads its links, c of the chains, whatever the air."""
    rng = np.random.default_rng(3)
    exchange = dataclasses.replace(EXCHANGE, full_power=full_power)
    air, there, back = (complex_normal(rng, Q, P, n) for n in (3, 1, 1))
    heard = exchange.hear(through(there * air, exchange.sounding("csi_rs")), "csi_rs")
    # Limits far below all fades; two nodes with one port each answer for themselves.
    options = {"form": form, "fade_limit_db": 90.0, "amplitude": 0.7}
    nodes = [slice(q, q + 1) for q in range(Q)]
    answers = [exchange.answer(heard.h[node], heard.heard[node], node, **options) for node in nodes]
    assert not any(np.any(answer.limited) for answer in answers)
    received = through((back * air).swapaxes(0, 1), np.concatenate([answer.burst for answer in answers]))
    h, _, found = exchange.read(received)
    own = h[np.arange(P), np.arange(P)]
    scale = np.concatenate([answer.scale for answer in answers]).T
    c = equivalent_channel(own, np.ones(own.shape), scale)
    truth = np.broadcast_to((back / there)[..., 0].T[..., None], c.shape)
    np.testing.assert_allclose(np.angle(c / truth), 0.0, atol=1e-4)
    assert found[np.arange(P), np.arange(P)].all()
    if form == "inverse":
        np.testing.assert_allclose(c, truth, rtol=1e-4)
    else:
        assert np.std(np.abs(c / truth)) > 0.1


def test_answers_lie_on_the_combs_of_the_paper_with_the_pilots_of_the_standard():
    """Eq. (19b), zero-based: port q answers port p on every P Q-th subcarrier from q P + p on."""
    burst, scale, _ = EXCHANGE.answer(np.ones((Q, P, 64)), np.ones((Q, P), bool))
    elements = GRID.demodulate(burst, 1, start=16)[:, 0]
    for q in range(Q):
        for p in range(P):
            sent = elements[q, q * P + p :: P * Q]
            np.testing.assert_allclose(sent / scale[q, p], pilot_sequence("cars", 32, identity=p * Q + q), atol=1e-6)
    assert np.sum(np.abs(elements) > 1e-3) == 192


def test_links_that_are_not_answered_leave_their_power_to_the_others():
    heard = np.array([[True, False, True], [False, False, False]])
    h = np.where(heard[..., None], 1.0 + 0j, np.nan) * np.ones((Q, P, 64))
    burst, scale, limited = EXCHANGE.answer(h, heard)
    np.testing.assert_allclose(scale, np.where(heard, np.sqrt(192 / 64), 0.0))
    assert not limited.any()
    assert np.mean(np.abs(burst[0, 48:304]) ** 2) == pytest.approx(1.0, rel=1e-5)
    assert not np.any(burst[1])


def test_fades_are_counted_for_each_link():
    h = np.ones((Q, P, 64), complex)
    h[1, 2, 5], h[1, 2, 6] = 1e-3, 1e-3  # element 5 is port 1's, 6 port 0's
    assert EXCHANGE.answer(h, np.ones((Q, P), bool)).limited.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_middle_is_where_a_turning_carrier_has_the_phase_that_is_measured():
    """With a single element, into which no other leaks; labelled 6 samples late, which is no time on the air."""
    exchange = OfdmExchange(OfdmGrid(15e3, 256, 32, 1), CombMapping(1, 1, 1), 400, 16, 8, latency_samples=6)
    cycles = 0.01 / 256
    sent = exchange.sounding("csi_rs") * np.exp(2j * np.pi * cycles * np.arange(400))
    h = exchange.hear(np.roll(sent, 6, axis=-1), "csi_rs").h
    assert np.angle(h.item()) / (2 * np.pi * cycles) == pytest.approx(exchange.middle, abs=1e-2)


def test_numbers_make_the_same_exchange():
    made = OfdmExchange.from_numbers(GRID.samp_rate, P, Q, 400, fft_size=256, cp_samples=32, num_subcarriers=192,
                                     skip_dc=True, lead_samples=16, advance_samples=8)  # fmt: skip
    assert made == EXCHANGE
    assert str(made) == "3 x 2 ports, 64 pilots"
    fewer = OfdmExchange.from_numbers(1e6, P, Q, 400, fft_size=256, cp_samples=32, num_subcarriers=200,
                                      pilots_per_port=60)  # fmt: skip
    assert fewer.mapping.pilots_per_port == 60
    assert fewer.grid.samp_rate == 1e6


@pytest.mark.parametrize(("change", "error", "text"), [
    ({"slot_samples": 335}, ValueError, "need 336"), ({"latency_samples": 105}, ValueError, "need 401"),
    ({"lead_samples": -1}, ValueError, "lead_samples=-1"), ({"advance_samples": 33}, ValueError, "advance_samples=33"),
    ({"receive_delay_samples": -1}, ValueError, "receive_delay_samples=-1"),
    ({"mapping": CombMapping(P, Q, 66)}, CombError, "at least the 198 of the combs"),
    ({"grid": OfdmGrid(15e3, 256, 32, 255)}, CombError, None)])  # fmt: skip
def test_exchange_that_cannot_be_is_refused(change, error, text):
    if text is None:
        change = {"grid": OfdmGrid(15e3, 256, 32, 256), "mapping": CombMapping(4, 2, 64)}
        error, text = ValueError, "leave none empty"
    with pytest.raises(error, match=text):
        dataclasses.replace(EXCHANGE, **change)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="purpose='cars'"):
        EXCHANGE.sounding("cars")
    with pytest.raises(ValueError, match="slot_samples = 400"):
        EXCHANGE.read(np.zeros(399))
    with pytest.raises(ValueError, match=r"\(ports, P, K\) = \(2, 3, 64\)"):
        EXCHANGE.answer(np.ones((1, P, 64)), np.ones((1, P), bool))
    with pytest.raises(ValueError, match="finite and not zero"):
        EXCHANGE.answer(np.zeros((Q, P, 64)), np.ones((Q, P), bool))
    for side, total in (("sounding", P), ("responding", Q)):
        assert EXCHANGE.ports(side, 1, total - 1) == slice(1, total)
        for first, num in ((0, total + 1), (total, 1), (-1, 1), (0, 0)):
            with pytest.raises(ValueError, match=f"within the {total} {side} ports"):
                EXCHANGE.ports(side, first, num)

# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
import scipy.linalg
from gnuradio.dmimo.core import waveforms
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol


@pytest.mark.parametrize(("length", "root"), [(1, 1), (2, 1), (7, 3), (31, 30), (64, 5), (96, 1), (839, 129)])
def test_zadoff_chu_has_unit_modulus_and_no_cyclic_autocorrelation(length, root):
    x = waveforms.zadoff_chu(length, root)
    np.testing.assert_allclose(np.abs(x), 1, atol=1e-12)
    autocorrelation = [np.vdot(x, np.roll(x, shift)) for shift in range(length)]
    np.testing.assert_allclose(autocorrelation, length * (np.arange(length) == 0), atol=1e-9)


def test_zadoff_chu_follows_the_definition_of_each_parity():
    n = np.arange(7)
    np.testing.assert_allclose(waveforms.zadoff_chu(7, 2), np.exp(-2j * np.pi * n * (n + 1) / 7), atol=1e-12)
    n = np.arange(8)
    np.testing.assert_allclose(waveforms.zadoff_chu(8, 3), np.exp(-3j * np.pi * n**2 / 8), atol=1e-12)


@pytest.mark.parametrize(("length", "root"), [(96, 2), (9, 3), (0, 1), (-4, 1), (8, 0)])
def test_zadoff_chu_refuses_a_root_that_is_not_coprime(length, root):
    with pytest.raises(ValueError, match=r"root=|length="):
        waveforms.zadoff_chu(length, root)


@pytest.mark.parametrize("kind", ["dft", "zadoff_chu"])
@pytest.mark.parametrize(("num_pilots", "length"), [(1, 1), (3, 8), (5, 7), (16, 16)])
def test_pilot_rows_are_orthonormal_and_flat(kind, num_pilots, length):
    x = waveforms.orthonormal_pilots(num_pilots, length, kind)
    assert x.shape == (num_pilots, length)
    np.testing.assert_allclose(x @ x.conj().T, np.eye(num_pilots), atol=1e-12)
    np.testing.assert_allclose(np.abs(x), 1 / np.sqrt(length), atol=1e-12)


def test_zadoff_chu_pilots_stay_orthogonal_under_a_common_delay():
    x = waveforms.orthonormal_pilots(4, 32, "zadoff_chu")
    for delay in range(1, 8):
        np.testing.assert_allclose(np.roll(x, delay, axis=-1) @ x.conj().T, 0, atol=1e-12)


def test_pilots_refuse_impossible_requests():
    with pytest.raises(ValueError, match="num_pilots=9"):
        waveforms.orthonormal_pilots(9, 8)
    with pytest.raises(ValueError, match="kind='walsh'"):
        waveforms.orthonormal_pilots(2, 8, "walsh")


def test_codebook_is_the_unitary_dft_matrix():
    np.testing.assert_allclose(waveforms.dft_codebook(32), scipy.linalg.dft(32, scale="sqrtn"), atol=1e-12)
    chosen = waveforms.dft_codebook(32, [0, 11, 22])
    np.testing.assert_allclose(chosen, scipy.linalg.dft(32, scale="sqrtn")[:, [0, 11, 22]], atol=1e-12)
    np.testing.assert_allclose(chosen.conj().T @ chosen, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("beams", [[], [32], [-1], [1, 1], [0.5], 3])
def test_codebook_refuses_bad_beams(beams):
    with pytest.raises(ValueError, match="beams="):
        waveforms.dft_codebook(32, beams)


@pytest.mark.parametrize(("samples", "subcarriers"), [(128, 96), (128, 97), (64, 1), (63, 62), (64, 62), (256, 12)])
def test_symbol_occupies_exactly_its_bins_symmetrically_with_unit_power(samples, subcarriers):
    symbol = SoundingSymbol(samples, subcarriers, 16)
    bins = symbol.bins
    assert bins.size == subcarriers
    np.testing.assert_array_equal(bins, -bins[::-1])
    assert (0 in bins) == bool(subcarriers % 2)
    x = symbol.samples()
    assert x.shape == (16 + samples,)
    np.testing.assert_allclose(x[:16], x[-16:], atol=1e-12)
    np.testing.assert_allclose(np.mean(np.abs(x[16:]) ** 2), 1, rtol=1e-12)
    # The definition, without any fast transform.
    n = np.arange(-16, samples)
    direct = np.exp(2j * np.pi * np.outer(n, bins) / samples) @ symbol.sequence / np.sqrt(subcarriers)
    np.testing.assert_allclose(x, direct, atol=1e-11)
    spectrum = np.fft.fft(x[16:])
    np.testing.assert_allclose(spectrum[symbol.empty_bins], 0, atol=1e-10)
    assert not set(symbol.empty_bins.tolist()) & ({0} | set(bins.tolist()))


def test_precoded_symbol_is_linear_in_its_weights_and_scales_its_power():
    symbol = SoundingSymbol()
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((2, 3, 96)) + 1j * rng.standard_normal((2, 3, 96))
    x = symbol.samples(weights)
    assert x.shape == (2, 3, 160)
    np.testing.assert_allclose(
        np.mean(np.abs(x[..., 32:]) ** 2, axis=-1), np.mean(np.abs(weights) ** 2, axis=-1), rtol=1e-12
    )
    np.testing.assert_allclose(x[1, 2], symbol.samples(weights[1, 2]), atol=1e-12)
    np.testing.assert_allclose(symbol.samples(2j * np.ones(96)), 2j * symbol.samples(), atol=1e-12)
    # A weight that rises with frequency is an advance in time, not a delay.
    ramp = np.exp(2j * np.pi * symbol.bins * 5 / 128)
    np.testing.assert_allclose(symbol.samples(ramp)[32:], np.roll(symbol.samples()[32:], -5), atol=1e-12)
    assert symbol.samples(dtype=np.complex64).dtype == np.complex64


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((128, 128, 0), "num_subcarriers"), ((128, 0, 0), "num_subcarriers"), ((0, 1, 0), "pilot_samples"),
     ((128, 96, -1), "prefix_samples"), ((128, 96, 129), "prefix_samples")],
)
def test_symbol_refuses_impossible_shapes(arguments, name):
    with pytest.raises(ValueError, match=f"{name}="):
        SoundingSymbol(*arguments)


@pytest.mark.parametrize("weights", [1.0, np.ones(95), np.ones((96, 2))])
def test_symbol_refuses_weights_of_the_wrong_length(weights):
    with pytest.raises(ValueError, match="weights has shape"):
        SoundingSymbol().samples(weights)


def test_layout_positions_agree_with_the_burst_it_makes():
    symbol = SoundingSymbol(64, 48, 8)
    layout = SlotLayout(256, 10, symbol, num_ports=3)
    burst = layout.sounding_burst(dtype=np.complex128)
    assert burst.shape == (3, 256)
    np.testing.assert_array_equal(np.count_nonzero(burst, axis=0) <= 1, True)
    for port in range(3):
        start = layout.useful_start(port)
        np.testing.assert_array_equal(burst[port, start : start + 64], symbol.samples()[8:])
        assert layout.middle(port) == start + 32
        assert isinstance(layout.middle(port), int)
    assert not burst[:, :10].any()
    assert not burst[:, layout.silence.start - 8 :].any()
    assert layout.silence == slice(10 + 3 * 72 + 8, 256)


def test_advance_moves_the_window_and_its_time_but_not_the_burst():
    symbol = SoundingSymbol(64, 48, 8)
    plain, early = SlotLayout(256, 10, symbol, 3), SlotLayout(256, 10, symbol, 3, advance_samples=4)
    np.testing.assert_array_equal(plain.sounding_burst(), early.sounding_burst())
    assert early.useful_start(1) == plain.useful_start(1) - 4
    assert early.middle(1) == plain.middle(1) - 4


def test_receive_delay_moves_the_window_its_time_and_the_silence_but_not_the_burst():
    symbol = SoundingSymbol(64, 48, 8)
    plain = SlotLayout(400, 10, symbol, 3, advance_samples=4, latency_samples=5)
    late = SlotLayout(400, 10, symbol, 3, 4, 5, receive_delay_samples=101)
    np.testing.assert_array_equal(plain.sounding_burst(), late.sounding_burst())
    assert late.useful_start(1) == plain.useful_start(1) + 101
    assert late.middle(1) == plain.middle(1) + 101
    assert (plain.midway(1), late.midway(1)) == (plain.middle(1), plain.middle(1) + 51)
    assert late.silence == slice(10 + 3 * 72 + 8 + 101 + 5, 400)
    # What is received at least so late, and by no more than the prefix less the advance later, fills the window.
    sent = late.sounding_burst(dtype=np.complex128)[1]
    for delay in (101 - 4, 101, 105):
        window = np.roll(sent, delay + 5)[late.useful_start(1) :][:64]
        np.testing.assert_allclose(window, np.roll(symbol.samples()[8:], delay - 101 + 4), atol=1e-12)


def test_joint_burst_sends_all_ports_at_the_first_position():
    symbol = SoundingSymbol()
    layout = SlotLayout(512, 16, symbol, num_ports=2)
    weights = np.exp(1j * np.arange(2 * 96).reshape(2, 96))
    burst = layout.joint_burst(weights, dtype=np.complex128)
    np.testing.assert_array_equal(burst[:, 16 : 16 + 160], symbol.samples(weights))
    assert not burst[:, 16 + 160 :].any()
    with pytest.raises(ValueError, match="weights has shape"):
        layout.joint_burst(weights[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"slot_samples": 207}, "slot_samples=207 is too short.*need 208"), ({"num_ports": 2}, "need 368"),
     ({"num_ports": 0}, "num_ports=0"), ({"lead_samples": -1}, "lead_samples=-1"),
     ({"advance_samples": 33}, "advance_samples=33"), ({"receive_delay_samples": -1}, "receive_delay_samples=-1"),
     ({"receive_delay_samples": 49}, "a delay of 49 and a tail of 32 samples need 257"),
     ({"receive_delay_samples": 48, "latency_samples": 33}, "latency_samples=33")],
)
def test_layout_refuses_what_does_not_fit(changes, message):
    arguments = {"slot_samples": 256, "lead_samples": 16, "symbol": SoundingSymbol(), "num_ports": 1}
    SlotLayout(**{**arguments, "slot_samples": 208})
    SlotLayout(**{**arguments, "receive_delay_samples": 48, "latency_samples": 32})
    with pytest.raises(ValueError, match=message):
        SlotLayout(**{**arguments, **changes})


@pytest.mark.parametrize("port", [-1, 1])
def test_layout_refuses_a_port_that_is_not_there(port):
    with pytest.raises(ValueError, match="port="):
        SlotLayout(256, 16, SoundingSymbol()).useful_start(port)

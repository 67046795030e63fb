# SPDX-License-Identifier: GPL-3.0-or-later
"""Amplifier model: the simulation's amplifiers for any buffers, memory, setters; linear behind a predistorter."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL, draw_amplifiers
from graph import run_until

MEMORY = (0.1 - 0.05j, 0.03j)
X = np.random.default_rng(6).normal(scale=np.sqrt(0.5), size=(2, 20_000, 2)).view(complex)[..., 0].astype(np.complex64)


def stream(flow, x=X, max_items=None):
    """Output streams of blocks in a row for finite inputs."""
    tb, sinks = gr.top_block(), [blocks.vector_sink_c() for _ in x]
    tb.sources, tb.flow = [blocks.vector_source_c(row.tolist()) for row in x], flow
    for port, (source, sink) in enumerate(zip(tb.sources, sinks, strict=True)):
        tb.connect(source, *[(block, port) for block in flow], sink)
    run_until(tb, lambda: min(len(sink.data()) for sink in sinks) == x.shape[1], max_items)
    return np.array([sink.data() for sink in sinks], np.complex64)


def call(block, x):
    """Output of one call of work."""
    out = np.empty_like(x)
    assert block.work(list(x), list(out)) == x.shape[1]
    return out


def written_out(x, a, memory=(), saturation=np.inf):
    """The amplifier term by term in double precision, a on the scale of x."""
    x = x.astype(complex)
    x = x * np.minimum(1.0, saturation / np.abs(x))
    now = sum(a_p * x * np.abs(x) ** (2 * p) for p, a_p in enumerate(a))
    out = now.copy()
    for lag, gain in enumerate(memory, 1):
        out[:, lag:] += gain * now[:, :-lag]
    return out / (1 + sum(memory))


@pytest.mark.parametrize("memory", [(), MEMORY])
def test_gan_amplifier_is_its_polynomial_at_the_back_off(memory):
    a = np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0] * 10 ** (-0.9 * np.arange(5))
    block = dmimo.amplifier_model(2, "gan", back_off_db=9.0, memory=memory)
    data = stream([block])
    np.testing.assert_allclose(data, written_out(X, a, memory, 10**0.45), atol=3e-6)
    assert np.mean(np.abs(data - X) ** 2) > 1e-3


def test_third_order_amplifier_is_its_polynomial_with_and_without_saturation():
    a = [1, (-0.1 + 0.05j) * 10**-0.6]
    block = dmimo.amplifier_model(2, "third_order", -0.1 + 0.05j, 6.0)
    np.testing.assert_allclose(stream([block]), written_out(X, a), atol=3e-6)
    block = dmimo.amplifier_model(2, "third_order", -0.1 + 0.05j, 6.0, saturation=0.8)
    np.testing.assert_allclose(stream([block]), written_out(X, a, saturation=0.8 * 10**0.3), atol=3e-6)


@pytest.mark.parametrize("max_items", [1, 17, 1000, 5000])
@pytest.mark.parametrize("memory", [(), MEMORY])
def test_output_is_the_same_to_the_bit_for_any_buffers(max_items, memory):
    settings = {"back_off_db": 8.0, "drive_std_db": 0.5, "spread": 0.1, "memory": memory, "seed": 5}
    x = X[:, :3000] if max_items == 1 else X
    whole = draw_amplifiers(np.random.default_rng(5), 2, back_off_db=8.0, drive_std_db=0.5, spread=0.1, memory=memory)
    silence = np.zeros((2, len(memory)), np.complex64)
    expected = whole(np.hstack([silence, x]))
    block = dmimo.amplifier_model(2, "gan", **settings)
    np.testing.assert_array_equal(stream([block], x, max_items), expected)
    # A second start has silence before it too.
    np.testing.assert_array_equal(stream([block], x, max_items), expected)


def test_ports_differ_by_the_seed():
    one, same, other = [dmimo.amplifier_model(2, back_off_db=8.0, spread=0.2, seed=seed) for seed in (1, 1, 2)]
    data = call(one, X)
    np.testing.assert_array_equal(call(same, X), data)
    assert not np.allclose(call(other, X), data, atol=1e-3)
    assert not np.allclose(call(one, X[::-1])[::-1], data, atol=1e-3)


def test_tags_stay_on_their_port():
    tag = gr.tag_t()
    tag.offset, tag.key, tag.value = 7, pmt.intern("of 1"), pmt.PMT_T
    tb, block = gr.top_block(), dmimo.amplifier_model(2)
    sinks = [blocks.vector_sink_c() for _ in range(2)]
    tb.sources = [blocks.vector_source_c(X[k].tolist(), False, 1, [tag] if k else []) for k in range(2)]
    for port in range(2):
        tb.connect(tb.sources[port], (block, port))
        tb.connect((block, port), sinks[port])
    run_until(tb, lambda: min(len(sink.data()) for sink in sinks) == X.shape[1])
    assert [[(t.offset, pmt.symbol_to_string(t.key)) for t in sink.tags()] for sink in sinks] == [[], [(7, "of 1")]]


CHANGES = {
    "kind": "third_order", "back_off_db": 6.0, "saturation": 0.5, "drive_std_db": 2.0, "spread": 0.5,
    "memory": (0.2j, 0.1, 0.05), "seed": 3,
}  # fmt: skip
BEFORE = {"kind": "gan", "compression": -0.3, "back_off_db": 9.0, "drive_std_db": 0.5, "spread": 0.1,
          "memory": MEMORY, "seed": 1}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_setter_takes_effect_from_the_next_call_on(name):
    after = BEFORE | {name: CHANGES[name]}
    block, at = dmimo.amplifier_model(2, **BEFORE), 5000
    first = call(block, X[:, :at])
    block.set_amplifier(**after)
    second = call(block, X[:, at:])
    old, new = dmimo.amplifier_model(2, **BEFORE), dmimo.amplifier_model(2, **after)
    np.testing.assert_array_equal(first, call(old, X)[:, :at])
    # Three earlier samples count, of which amplifiers with a memory of two have kept two.
    known = X.copy()
    known[:, : at - 2] = 0
    reference = call(new, known if name == "memory" else X)[:, at:]
    np.testing.assert_array_equal(second, reference)
    assert not np.allclose(second, call(old, X)[:, at:], atol=1e-3)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"num_ports": 0}, "num_ports = 0"), ({"kind": "tube"}, "kind = 'tube'"), ({"saturation": 0.0}, "saturation"),
    ({"kind": "third_order", "compression": np.nan}, "compression = "), ({"back_off_db": np.inf}, "back_off_db"),
    ({"drive_std_db": -1.0}, "drive_std_db"), ({"spread": -0.1}, "spread"), ({"memory": (np.nan,)}, "finite"),
    ({"memory": (-1.0,)}, "add up to zero")])
def test_bad_values_are_refused_and_the_old_amplifiers_stay(settings, reason):
    with pytest.raises(ValueError, match=reason):
        dmimo.amplifier_model(**settings)
    if "num_ports" not in settings:
        block = dmimo.amplifier_model(2, "gan", back_off_db=8.0)
        with pytest.raises(ValueError, match=reason):
            block.set_amplifier(**{"kind": "gan"} | settings)
        np.testing.assert_array_equal(call(block, X), call(dmimo.amplifier_model(2, "gan", back_off_db=8.0), X))


# -- with a predistorter ----------------------------------------------------------------------------------------------


def band_limited(num, share=0.2, seed=8):
    """Gaussian data of unit mean power in the middle `share` of the band, complex64 (2, num)."""
    spectrum = np.random.default_rng(seed).normal(size=(2, num, 2)).view(complex)[..., 0]
    spectrum[:, np.abs(np.fft.fftfreq(num)) > share / 2] = 0.0
    x = np.fft.ifft(spectrum)
    return (x / np.sqrt(np.mean(np.abs(x) ** 2, axis=1, keepdims=True))).astype(np.complex64)


def aclr_db(x, share=0.2):
    """Power in the channel over that in the stronger adjacent channel of the same width, (ports,)."""
    power, f = np.abs(np.fft.fft(x)) ** 2, np.fft.fftfreq(x.shape[1])
    own, lower, upper = [np.sum(power[:, np.abs(f - shift * share) <= share / 2], axis=1) for shift in (0, -1, 1)]
    return 10 * np.log10(own / np.maximum(lower, upper))


def test_predistorter_improves_the_adjacent_channels_of_gan_at_12_db_back_off():
    x = band_limited(1 << 17)
    amplifier = dmimo.amplifier_model(2, "gan", back_off_db=12.0, drive_std_db=0.3, spread=0.05, seed=4)
    before = aclr_db(stream([amplifier], x))
    predistorter = dmimo.predistorter(2, amplifier.amplifiers.coefficients)
    after = aclr_db(stream([predistorter, amplifier], x))
    assert np.all(after - before > 15), (before, after)
    # The phase counts too.
    wrong = dmimo.predistorter(2, amplifier.amplifiers.coefficients.conj())
    assert np.all(aclr_db(stream([wrong, amplifier], x)) < after - 5)

# SPDX-License-Identifier: GPL-3.0-or-later
"""CARS responder, CARS reader and phase tracker: answers in time, coefficients at the midpoint, phases followed."""

import numpy as np
import pmt
import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.cars_reader import WAITING_SLOTS
from gnuradio.dmimo.blocks.timetags import rate_ratio, sample_from_pmt, time_to_pmt
from gnuradio.dmimo.core.ofdm_exchange import OfdmExchange
from gnuradio.dmimo.protocols.slots import Grant
from graph import message_sink, message_source

P, Q, NUM, RATE, LATENCY = 2, 3, 400, 1e6, 5000
EXCHANGE = OfdmExchange.from_numbers(RATE, P, Q, NUM, fft_size=256, cp_samples=32, num_subcarriers=192,
                                     lead_samples=16, advance_samples=8)  # fmt: skip
START = 10**12 + 7
NOISE = 1e-3


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


class Air:
    """P nodes hear Q nodes and the other way round, flat, through chains of their own; one sample late."""

    def __init__(self, seed=1):
        self.rng = np.random.default_rng(seed)
        air, there, back = complex_normal(self.rng, 3, P, Q)
        self.there, self.back = (air * there).T, air * back
        self.c = back / there  # channel to the side that sounded over channel from it, (P, Q)

    def through(self, h, sent):
        late = np.pad(sent, ((0, 0), (1, 0)))[:, :-1]
        return (h @ late + NOISE * complex_normal(self.rng, len(h), sent.shape[1])).astype(np.complex64)

    def soundings(self):
        """What the Q ports receive of one slot with the soundings of all P."""
        return self.through(self.there, EXCHANGE.sounding("csi_rs"))


def received(samples, start=START, slot=4, status="ok"):
    header = messages.burst_header("a", 1 if samples is None else len(samples))
    return messages.received_burst(header, [Grant(slot, 1, start)], samples, status)


def plain(samples, **keys):
    meta = pmt.make_dict()
    for key, value in keys.items():
        meta = pmt.dict_add(meta, pmt.intern(key), value)
    return pmt.cons(meta, pmt.init_c32vector(samples.size, samples.reshape(-1).tolist()))


def csi(found, purpose, start):
    h, noise_var, heard = found
    return messages.encode("csi", purpose=purpose, start=start, sample=start + EXCHANGE.middle, h=h,
                           noise_var=noise_var, heard=heard)  # fmt: skip


class Published(dict):
    """What blocks have published, by port; `listen` collects that of one more block."""

    def __init__(self, *blocks):
        super().__init__()
        for block in blocks:
            block.message_port_pub = self.take

    def take(self, port, message):
        self.setdefault(pmt.symbol_to_string(port), []).append(message)


def responder(**options):
    options = {"num_ports": Q, "latency_samples": LATENCY, "purpose": "csi_rs"} | options
    block = dmimo.cars_responder(EXCHANGE, **options)
    return block, Published(block)


def fields(message, *names):
    return [messages.get(message, name) for name in names]


def key(meta, name):
    return pmt.dict_ref(meta, pmt.intern(name), pmt.PMT_NIL)


def samples_of(burst, num_ports=Q):
    return messages.vector_from_pmt(pmt.cdr(burst)).reshape(num_ports, -1)


# -- responder --------------------------------------------------------------------------------------------------------


def test_answer_is_that_of_core_at_its_latency_with_its_metadata():
    block, published = responder(form="conjugate", fade_limit_db=12.0, amplitude=0.5)
    samples = Air().soundings()
    block.handle_burst(received(samples))
    assert set(published) == {"answers", "metadata"}
    (answer,), (metadata,) = published["answers"], published["metadata"]
    meta = pmt.car(answer)
    assert sample_from_pmt(key(meta, "tx_time"), rate_ratio(RATE)) == START + LATENCY
    assert pmt.to_long(key(meta, "slot")) == 4
    assert pmt.length(pmt.dict_keys(meta)) == 3, "what belongs to reception is not sent on"
    assert pmt.equal(key(meta, "cars"), metadata)
    found = EXCHANGE.hear(samples, "csi_rs")
    expected = EXCHANGE.answer(found.h, found.heard, form="conjugate", fade_limit_db=12.0, amplitude=0.5)
    np.testing.assert_array_equal(samples_of(answer), expected.burst)
    assert messages.kind(metadata) == "cars"
    np.testing.assert_array_equal(messages.get(metadata, "scale"), expected.scale)
    np.testing.assert_array_equal(messages.get(metadata, "limited"), expected.limited)
    middle = EXCHANGE.middle
    assert fields(metadata, "start", "sample", "sounding_sample", "first_port", "reads_amplitude") == [
        START + LATENCY, START + LATENCY + middle, START + middle, 0, False]  # fmt: skip


def test_channels_and_samples_have_the_same_answer():
    samples = Air().soundings()
    by_samples, by_channels = responder(), responder()
    by_samples[0].handle_burst(plain(samples, rx_time=time_to_pmt(777, rate_ratio(RATE)), beam=pmt.from_long(2)))
    by_channels[0].handle_csi(csi(EXCHANGE.hear(samples, "csi_rs"), "csi_rs", 777))
    for _, published in (by_samples, by_channels):
        meta = pmt.car(published["answers"][0])
        assert sample_from_pmt(key(meta, "tx_time"), rate_ratio(RATE)) == 777 + LATENCY
    np.testing.assert_array_equal(*(samples_of(p["answers"][0]) for _, p in (by_samples, by_channels)))
    assert pmt.equal(*(p["metadata"][0] for _, p in (by_samples, by_channels)))
    assert pmt.to_long(key(pmt.car(by_samples[1]["answers"][0]), "beam")) == 2


def test_soundings_received_together_are_answered_one_by_one():
    air = Air()
    slots = np.stack([air.soundings(), 2 * air.soundings()])
    grants = [Grant(4, 0, 1000), Grant(6, 0, 3000)]
    block, published = responder()
    block.handle_burst(messages.received_burst(messages.burst_header("a", Q), grants, slots))
    assert [messages.get(m, "start") for m in published["metadata"]] == [1000 + LATENCY, 3000 + LATENCY]
    assert [pmt.to_long(key(pmt.car(m), "slot")) for m in published["answers"]] == [4, 6]
    for one, answer in zip(slots, published["answers"], strict=True):
        alone, out = responder()
        alone.handle_burst(received(one))
        np.testing.assert_array_equal(samples_of(answer), samples_of(out["answers"][0]))


def test_port_that_is_not_heard_gets_no_answer():
    air = Air()
    air.there[1, 0] = 0.0
    block, published = responder()
    block.handle_burst(received(air.soundings()))
    scale = messages.get(published["metadata"][0], "scale")
    np.testing.assert_array_equal(scale > 0, [[True, True], [False, True], [True, True]])


NAN = np.full((Q, NUM), np.nan, np.complex64)


@pytest.mark.parametrize(("burst", "reason"), [
    (received(None, status="lost"), "burst is lost"),
    (received(np.zeros((Q, 399), np.complex64)), "burst of 399 samples: must have slot_samples = 400"),
    (received(np.zeros((Q, NUM), np.complex64)), "no port stands out of the noise"),
    (received(NAN), "no port stands out of the noise"),
])
def test_sounding_without_an_answer_is_named_and_read_as_none(burst, reason):
    block, published = responder()
    block.handle_burst(burst)
    assert set(published) == {"dropped", "metadata"}
    (dropped,), (metadata,) = published["dropped"], published["metadata"]
    assert messages.kind(dropped) == "dropped"
    assert reason in messages.get(dropped, "reason")
    assert fields(dropped, "slot", "start") == [4, START]
    assert messages.get(metadata, "start") == START + LATENCY
    np.testing.assert_array_equal(messages.get(metadata, "scale"), np.zeros((Q, P)))


def test_sounding_without_time_has_no_answer():
    block, published = responder()
    block.handle_burst(plain(Air().soundings()))
    assert set(published) == {"dropped"}
    assert messages.get(published["dropped"][0], "reason") == "burst has no time"


@pytest.mark.parametrize(("port", "message", "text"), [
    ("bursts", pmt.from_long(3), "no burst"),
    ("bursts", plain(np.zeros((Q, NUM)), num_ports=pmt.from_long(2)), "burst of 2 ports"),
    ("csi", pmt.make_dict(), "lacks 'purpose'"),
    ("csi", csi(EXCHANGE.read(np.ones((Q, NUM))), "cars", 0), "an answer has no answer"),
    ("csi", csi(EXCHANGE.hear(Air().soundings()[:1], "csi_rs"), "csi_rs", 0), "must be (ports, P, K)"),
])
def test_message_that_is_neither_is_an_error(port, message, text):
    block, published = responder()
    {"bursts": block.handle_burst, "csi": block.handle_csi}[port](message)
    assert set(published) == {"error"}
    assert text in pmt.symbol_to_string(published["error"][0])


@pytest.mark.parametrize(("options", "text"), [
    ({"latency_samples": NUM - 1}, "latency_samples = 399"), ({"purpose": "cars"}, "purpose = 'cars'"),
    ({"form": "matched"}, "form = 'matched'"), ({"fade_limit_db": 0.0}, "fade_limit_db = 0"),
    ({"amplitude": float("inf")}, "amplitude = inf"), ({"first_port": 1}, "within the 3 responding ports")])
def test_responder_refuses_bad_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        responder(**options)


# -- reader -----------------------------------------------------------------------------------------------------------


def exchange(air, node_ports=((0, 1), (1, 2)), **options):
    """Messages of one exchange: metadata of the responders with these (first port, ports), csi of the P nodes."""
    samples, metadata, bursts = air.soundings(), [], []
    for first, num in node_ports:
        block, published = responder(num_ports=num, first_port=first, **options)
        block.handle_burst(received(samples[first : first + num]))
        metadata += published["metadata"]
        bursts += [samples_of(answer, num) for answer in published.get("answers", [plain(np.zeros((num, NUM)))])]
    got = air.through(air.back, np.concatenate(bursts))
    at = START + options.get("latency_samples", LATENCY)
    return metadata, [csi(EXCHANGE.read(got[p : p + 1]), "cars", at) for p in range(P)]


def reader(first_port=0, num_ports=1, num_responders=2):
    block = dmimo.cars_reader(EXCHANGE, num_ports=num_ports, first_port=first_port, num_responders=num_responders)
    return block, Published(block)


@pytest.mark.parametrize("order", ["metadata first", "channels first", "between"])
def test_coefficients_are_the_ratio_of_the_two_directions_at_the_midpoint(order):
    air = Air()
    metadata, channels = exchange(air, fade_limit_db=60.0)
    for p in range(P):
        block, published = reader(first_port=p)
        steps = [(block.handle_metadata, each) for each in metadata]
        at = {"metadata first": 2, "channels first": 0, "between": 1}[order]
        steps.insert(at, (block.handle_csi, channels[p]))
        for handle, message in steps[:-1]:
            handle(message)
            assert not published
        steps[-1][0](steps[-1][1])
        (message,) = published["coefficients"]
        c, used, sample, limited = fields(message, "c", "used", "sample", "limited")
        assert c.shape == (1, Q, EXCHANGE.mapping.pilots_per_port // Q)
        assert used.all()
        assert not limited.any()
        # The delay of the air has gone, like its gain.
        np.testing.assert_allclose(c[0], np.broadcast_to(air.c[p][:, None], c[0].shape), rtol=0.1)
        np.testing.assert_allclose(c.mean(axis=-1)[0], air.c[p], rtol=0.02)
        np.testing.assert_array_equal(sample, np.full(Q, START + LATENCY / 2 + EXCHANGE.middle))
        assert messages.get(message, "reads_amplitude") is True
        assert messages.get(message, "start") == START + LATENCY


def test_noise_of_the_answer_is_predicted():
    """300 exchanges, links of about 36 dB: the answer's part of the deviation, by fixing the sounding."""
    air = Air(2)
    metadata, _ = exchange(air, fade_limit_db=60.0)
    block, published = reader()
    samples = air.soundings()
    responding, out = responder(fade_limit_db=60.0)
    responding.handle_burst(received(samples))
    sent = samples_of(out["answers"][0])
    block, published = reader(num_responders=1)
    for _ in range(300):
        block.handle_metadata(out["metadata"][0])
        block.handle_csi(csi(EXCHANGE.read(air.through(air.back, sent)[:1]), "cars", START + LATENCY))
    c = np.array([messages.get(m, "c") for m in published["coefficients"]])
    predicted = np.mean([messages.get(m, "noise_var") for m in published["coefficients"]], axis=0)
    # 300 x 32 values: a standard error of 1 %.
    np.testing.assert_allclose(np.mean(np.var(c, axis=0), axis=-1), predicted, rtol=0.05)


def test_links_not_heard_in_both_directions_are_not_used():
    air = Air()
    air.there[0, 0] = 0.0  # port 0 of the responders does not hear node 0
    air.back[0, 1] = 0.0  # node 0 does not hear port 1
    metadata, channels = exchange(air)
    block, published = reader()
    for message in metadata:
        block.handle_metadata(message)
    block.handle_csi(channels[0])
    c, used = fields(published["coefficients"][0], "c", "used")
    assert used.tolist() == [[0, 0, 1]]
    assert np.isnan(c[0, :2]).all()
    assert np.isfinite(c[0, 2]).all()


def test_responder_that_heard_nothing_does_not_keep_the_others_waiting():
    air = Air()
    air.there[0] = 0.0
    metadata, channels = exchange(air)
    block, published = reader(num_ports=1)
    for message in metadata:
        block.handle_metadata(message)
    block.handle_csi(channels[0])
    assert messages.get(published["coefficients"][0], "used").tolist() == [[0, 1, 1]]


def test_slot_that_stays_incomplete_is_named_and_forgotten():
    air = Air()
    metadata, channels = exchange(air)
    block, published = reader()
    block.handle_csi(channels[0])
    for k in range(1, WAITING_SLOTS):
        block.handle_metadata(pmt.dict_add(metadata[0], pmt.intern("start"), pmt.from_long(START + LATENCY + 1000 * k)))
    assert not published
    for k in range(2):
        at = pmt.from_long(START + LATENCY + 1000 * (WAITING_SLOTS + k))
        block.handle_metadata(pmt.dict_add(metadata[0], pmt.intern("start"), at))
    assert [fields(m, "reason", "start") for m in published["dropped"]] == [
        ["metadata of 0 of 2 responders", START + LATENCY], ["no channels", START + LATENCY + 1000]]  # fmt: skip
    block.handle_csi(channels[0])
    assert set(published) == {"dropped"}
    assert block.start()
    block.stop()
    for message in metadata:  # nothing is left of what came before the start
        block.handle_metadata(message)
    assert set(published) == {"dropped"}


@pytest.mark.parametrize(("port", "message", "text"), [
    ("csi", csi(EXCHANGE.hear(Air().soundings(), "csi_rs"), "csi_rs", 0), "must be 'cars'"),
    ("csi", pmt.make_dict(), "lacks 'purpose'"), ("metadata", pmt.make_dict(), "must be 'cars'")])
def test_reader_refuses_other_messages(port, message, text):
    block, published = reader()
    {"csi": block.handle_csi, "metadata": block.handle_metadata}[port](message)
    assert text in pmt.symbol_to_string(published["error"][0])


def test_reader_refuses_bad_arguments():
    with pytest.raises(ValueError, match="num_responders = 0"):
        reader(num_responders=0)
    with pytest.raises(ValueError, match="within the 2 sounding ports"):
        reader(first_port=2)


# -- tracker ----------------------------------------------------------------------------------------------------------


def reference(c, sample, used=None):
    used = np.ones(c.shape[:2], bool) if used is None else used
    return messages.encode("coefficients", c=c, used=used, sample=np.full(c.shape[1], float(sample)))


def sounding(h, sample):
    return messages.encode("csi", purpose="srs", start=int(sample) - 100, sample=float(sample), h=h)


@pytest.fixture
def tracking():
    """Coefficients (2, 3, 16) and channels (2, 3, 16) with a frequency for each link: c turns at twice that of h."""
    rng = np.random.default_rng(6)
    c, h = complex_normal(rng, 2, 2, 3, 16)
    cycles = rng.uniform(-1e-5, 1e-5, (2, 3, 1))

    def at(sample):
        return h * np.exp(2j * np.pi * cycles * sample), c * np.exp(4j * np.pi * cycles * sample)

    return at


@pytest.mark.parametrize("mode", ["wideband", "per_subcarrier"])
def test_coefficients_turn_twice_as_far_as_the_channels_and_move_in_time(tracking, mode):
    """Also where the anchor lies after the coefficients; phases beyond half a turn do not matter."""
    block = dmimo.phase_tracker(mode=mode)
    published = Published(block)
    block.handle_reference(reference(tracking(1000)[1], 1000))
    for sample in (1200, 9000, 90000, 300000):
        block.handle_csi(sounding(tracking(sample)[0], sample))
    assert set(published) == {"tracked"}
    for message, sample in zip(published["tracked"], (9000, 90000, 300000), strict=True):
        c, when, used, phase, std = fields(message, "c", "sample", "used", "phase_rad", "phase_std_rad")
        np.testing.assert_array_equal(when, np.full(3, sample - 200.0))
        np.testing.assert_allclose(c, tracking(sample - 200)[1], atol=1e-9)
        assert used.all()
        assert phase.shape == ((2, 3) if mode == "wideband" else (2, 3, 16))
        assert std.shape == (2, 3)
        assert messages.get(message, "start") == sample - 100


def test_new_reference_anchors_anew_at_the_nearest_sounding(tracking):
    block = dmimo.phase_tracker()
    published = Published(block)
    block.handle_csi(sounding(tracking(0)[0], 0))  # before any reference
    block.handle_reference(reference(tracking(100)[1], 100))
    block.handle_csi(sounding(tracking(5000)[0], 5000))  # anchor at 0
    block.handle_reference(reference(7.0 * tracking(9000)[1], 9000))
    block.handle_csi(sounding(tracking(9300)[0], 9300))  # nearer than 5000: the anchor
    block.handle_csi(sounding(tracking(20000)[0], 20000))
    block.handle_reference(reference(tracking(10000)[1], 10000))  # late: the last but one is the anchor
    block.handle_csi(sounding(tracking(30000)[0], 30000))
    for message, factor, sample in zip(published["tracked"], (1.0, 7.0, 1.0), (5100, 19700, 30700), strict=True):
        np.testing.assert_allclose(messages.get(message, "c"), factor * tracking(sample)[1], atol=1e-9)
        np.testing.assert_array_equal(messages.get(message, "sample"), np.full(3, float(sample)))


def test_one_phase_for_the_band_is_better_than_one_for_each_subcarrier(tracking):
    """At 10 dB: sqrt(v / 2 K) with v = 0.21 and K = 16, and sqrt(v / 2); 200 soundings of 6 links, within 10 %."""
    rng = np.random.default_rng(7)
    block = dmimo.phase_tracker()
    published = Published(block)
    h, c = np.exp(1j * np.angle(tracking(0)[0])), tracking(0)[1]
    errors = {}
    for mode in ("wideband", "per_subcarrier"):
        block.set_mode(mode)
        published.clear()
        for _ in range(200):
            assert block.start()  # without the soundings of before
            block.stop()
            block.handle_reference(reference(c, 0))
            for sample in (0, 1000):
                block.handle_csi(sounding(h + np.sqrt(0.1) * complex_normal(rng, *h.shape), sample))
        phases = np.concatenate([messages.get(m, "phase_rad").ravel() for m in published["tracked"]])
        errors[mode] = np.sqrt(np.mean(phases**2))
    assert errors["wideband"] == pytest.approx(np.sqrt(0.21 / 32), rel=0.1)
    assert errors["per_subcarrier"] > 3.5 * errors["wideband"]
    with pytest.raises(ValueError, match="mode = 'narrowband'"):
        block.set_mode("narrowband")


def test_link_that_is_lost_is_not_tracked(tracking):
    block = dmimo.phase_tracker()
    published = Published(block)
    used = np.array([[True, True, False], [True, True, True]])
    c = np.where(used[..., None], tracking(0)[1], np.nan)
    block.handle_reference(reference(c, 0, used))
    block.handle_csi(sounding(tracking(0)[0], 0))
    gone = tracking(1000)[0].copy()
    gone[1, 1] = 1e-3 * complex_normal(np.random.default_rng(8), 16)
    block.handle_csi(sounding(gone, 1000))
    got, still = fields(published["tracked"][0], "c", "used")
    assert still.tolist() == [[1, 1, 0], [1, 0, 1]]
    np.testing.assert_array_equal(np.isfinite(got).all(axis=-1), still.astype(bool))


def test_tracker_says_what_does_not_fit(tracking):
    block = dmimo.phase_tracker("per_subcarrier")
    published = Published(block)
    h, c = tracking(0)
    block.handle_reference(reference(c[..., :8], 0))
    block.handle_csi(sounding(h, 0))
    block.handle_csi(sounding(h, 1000))
    block.handle_csi(sounding(h[:1], 2000))
    block.handle_csi(pmt.make_dict())
    texts = list(map(pmt.symbol_to_string, published["error"]))
    for text, part in zip(texts, ("on the subcarriers of the reference", "links of the reference", "lacks 'h'"),
                          strict=True):  # fmt: skip
        assert part in text


# -- together ---------------------------------------------------------------------------------------------------------


def test_flowgraph_of_the_three_follows_the_coefficients(tracking):
    """Messages through GNU Radio: soundings to a responder, its metadata to a reader, coefficients to a tracker."""
    air, tb = Air(), gr.top_block()
    tb.responder = dmimo.cars_responder(EXCHANGE, num_ports=Q, latency_samples=LATENCY, purpose="csi_rs")
    tb.reader, tb.tracker = dmimo.cars_reader(EXCHANGE), dmimo.phase_tracker()
    tb.sources = [message_source() for _ in range(3)]
    answers, coefficients, tracked, errors = (message_sink() for _ in range(4))
    tb.msg_connect(tb.sources[0], "out", tb.responder, "bursts")
    tb.msg_connect(tb.responder, "answers", answers, "in")
    tb.msg_connect(tb.responder, "metadata", tb.reader, "metadata")
    tb.msg_connect(tb.sources[1], "out", tb.reader, "csi")
    tb.msg_connect(tb.reader, "coefficients", coefficients, "in")
    tb.msg_connect(tb.reader, "coefficients", tb.tracker, "reference")
    tb.msg_connect(tb.sources[2], "out", tb.tracker, "csi")
    tb.msg_connect(tb.tracker, "tracked", tracked, "in")
    for block in (tb.responder, tb.reader, tb.tracker):
        tb.msg_connect(block, "error", errors, "in")
    h = complex_normal(np.random.default_rng(9), 1, Q, 64)
    tb.start()
    try:
        tb.sources[0].send(received(air.soundings()))
        got = air.through(air.back, samples_of(answers.wait(1)[0]))[:1]
        tb.sources[1].send(csi(EXCHANGE.read(got), "cars", START + LATENCY))
        c = messages.get(coefficients.wait(1)[0], "c")
        for k in range(20):  # the reference may come between any of them
            tb.sources[2].send(sounding(h * np.exp(0.4j * k), START + LATENCY + 1000 * (k + 1)))
        last = tracked.wait(1)[-1]
    finally:
        tb.stop()
        tb.wait()
    assert not errors.messages
    np.testing.assert_allclose(c.mean(axis=-1)[0], air.c[0], rtol=0.05)
    phase = messages.get(last, "phase_rad")
    np.testing.assert_allclose(messages.get(last, "c"), c * np.exp(2j * phase)[..., None], rtol=1e-9)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ports of the virtual USRP hear of each other: delays, gains, phases, carriers."""

import time

import numpy as np
import pytest
import virtual_usrp_device as virtual
from graph import wait_for
from virtual_usrp_graph import FREQ, PORTS, RATE, Radio, one_board, ones


def test_a_timed_burst_arrives_at_its_sample_with_its_gain_on_every_port(uhd, tmp_path):
    delay, loop = 3, [0, 2, 5, 1]
    radio = Radio(uhd, tmp_path, delay=delay, loop_delay=loop, seed=4)
    radio.set_time()
    start = radio.soon()
    rng = np.random.default_rng(1)
    bursts = [(start + 1000, rng.uniform(-0.5, 0.5, (PORTS, 700)) + 0j), (start + 5000, 0.3j * np.eye(PORTS))]
    received = radio.run(bursts, start=start, num_samples=8000, events=8)

    sent = np.zeros((PORTS, 8000), complex)
    for when, burst in bursts:
        for port in range(PORTS):
            first = when - start + delay + loop[port]
            sent[port, first : first + burst.shape[1]] += burst[port]
    noise = received - radio.truth() @ sent
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(1e-10, rel=6 / np.sqrt(noise.size))  # noise_db=-100
    assert radio.time_tags() == [(0, start)]
    ends = [start + 1700, start + 5000 + PORTS]
    assert radio.events() == sorted(("burst_ack", port, end) for port in range(PORTS) for end in ends)


def test_the_air_is_reciprocal_and_another_seed_is_another_one(uhd, tmp_path):
    couplings = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        radio = one_board(uhd, folder, seed=seed, gains="unit", lo_phase_quantum=0)
        couplings.append({(e["rx"], e["tx"]): complex(*e["h"]) for e in virtual.read_log(radio.log, "coupling")})
        truth = radio.truth()
        assert abs(truth[0, 1]) == pytest.approx(abs(truth[1, 0]))
    assert couplings[0][1, 0] != couplings[1][1, 0]


def test_a_timed_tune_turns_the_phase_at_its_sample(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", gains="unit", lo_phase_quantum=90, seed=3)
    start = radio.soon()
    when = start + 6000
    full, part = divmod(when, RATE)
    radio.source.set_command_time(uhd.time_spec(full, part / RATE), 0)
    radio.source.set_center_freq(FREQ, 0)
    radio.source.clear_command_time(0)
    (tune,) = [entry for entry in virtual.read_log(radio.log, "tune") if entry.get("requested_time")]
    assert tune["lead"] == pytest.approx(tune["requested_time"] - tune["device_time"], abs=1e-9)
    received = radio.run([(start + 1000, ones(9000, num_ports=2))], start=start, num_samples=12000)

    phase = np.angle(received[:, 1000:10000])
    before, after = phase[:, :5000], phase[:, 5000:]
    turned = np.exp(1j * (after.mean() - before.mean()))
    assert np.ptp(before) < 0.01  # each side is constant, so that the jump is between samples 5999 and 6000
    assert np.ptp(after) < 0.01
    assert min(abs(turned - 1j**k) for k in range(1, 4)) < 0.01  # a multiple of the quantum, and not 0


def test_gains_are_decibels_and_frequency_offsets_turn(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", gains="unit")
    radio.sink.set_gain(6, 0)
    radio.source.set_gain(3, 1)
    radio.sink.set_center_freq(FREQ + 1e3, 0)  # the synthesizer is shared, the carrier is the channel's own
    radio.sink.set_center_freq(FREQ + RATE, 1)  # out of the receiver's band
    start = radio.soon()
    received = radio.run([(start, ones(2000, num_ports=2))], start=start, num_samples=2000)
    assert np.abs(received[0]) == pytest.approx(0.5 * 0.1 * 10 ** (6 / 20), rel=1e-3)
    assert np.abs(received[1]) == pytest.approx(0.5 * 0.1 * 10 ** (9 / 20), rel=1e-3)
    turn = np.angle(np.sum(received[:, 1:] * received[:, :-1].conj())) / (2 * np.pi)
    assert turn * RATE == pytest.approx(1e3, abs=1)


def test_carriers_differ_while_boards_run_on_their_own_clocks(uhd, tmp_path):
    radio = Radio(uhd, tmp_path, coupling="ones", gains="unit", ppm=1, seed=2)
    radio.set_time()
    turns = []
    for source in ("internal", "external"):
        for board in range(2):
            radio.source.set_clock_source(source, board)
        start = radio.soon()
        burst = np.zeros((PORTS, 4000))
        burst[0] = 0.5
        received = radio.run([(start, burst)], start=start, num_samples=4000)
        turns.append(np.angle(np.sum(received[:, 1:] * received[:, :-1].conj(), axis=1)) / (2 * np.pi) * RATE)
    assert turns[0][:2] == pytest.approx(0, abs=0.1)  # a board's own error cancels between its chains
    assert turns[0][2] == pytest.approx(turns[0][3], abs=0.1)
    assert 100 < abs(turns[0][2]) < 2 * 1e-6 * FREQ
    assert turns[1] == pytest.approx(0, abs=0.1)


def test_what_the_synthesizer_cannot_reach_is_left_to_the_dsp(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, lo_step=1e6)
    for block, offset, rf_offset in ((radio.source, 0, 0), (radio.sink, 2e6, 2e6)):
        result = block.set_center_freq(uhd.tune_request(FREQ + 0.3e6, offset), 0)
        assert result.actual_rf_freq == FREQ + rf_offset
        assert abs(result.actual_dsp_freq) == abs(rf_offset - 0.3e6)
        assert block.get_center_freq(0) == FREQ + 0.3e6
    start = radio.soon()
    burst = ones(1000, num_ports=2) * [[1], [0]]
    received = radio.run([(start, burst)], start=start, num_samples=1000)
    assert np.ptp(np.angle(received[0] / received[0, 0])) < 0.01  # both carriers are the same, however they are made


@pytest.mark.parametrize("digital", [0, RATE / 3])
def test_digital_frequencies_turn_c_from_burst_to_burst_since_bursts_start_them_anew(uhd, tmp_path, digital):
    radio = one_board(uhd, tmp_path, coupling="ones")
    for block in (radio.source, radio.sink):
        for port in range(2):
            block.set_center_freq(uhd.tune_request(FREQ, digital), port)
    start = radio.soon()
    offsets = [1000, 2000, 3000, 4001]  # of bursts of port 0 and 1 in turn
    bursts = [(start + offset, 0.5 * np.eye(2)[[place % 2] * 500].T) for place, offset in enumerate(offsets)]
    received = radio.run(bursts, start=start, num_samples=5000)
    heard = [received[1 - place % 2, offset : offset + 500] for place, offset in enumerate(offsets)]
    assert all(np.ptp(np.angle(one / one.mean())) < 0.01 for one in heard)  # a burst by itself shows nothing
    there, back, again, late = (one.mean() for one in heard)
    turned = np.angle((late / again) / (back / there)) / (2 * np.pi)
    # By what the oscillator turns in the one sample that the bursts of the second pair are further apart.
    assert np.angle(np.exp(2j * np.pi * (turned - digital / RATE))) == pytest.approx(0, abs=0.01)
    apart = np.angle(there / radio.truth()[1, 0])  # the receiver's has run since its stream began
    assert np.angle(np.exp(1j * (apart - 2 * np.pi * digital * offsets[0] / RATE))) == pytest.approx(0, abs=0.01)


def test_devices_on_one_medium_hear_each_other(uhd, tmp_path):
    shared = {"medium": tmp_path.name, "mboards": 1, "coupling": "ones", "gains": "unit"}
    first, second = Radio(uhd, tmp_path, **shared), Radio(uhd, tmp_path, first_board=1, **shared)
    for radio in (first, second):
        radio.source.set_time_next_pps(uhd.time_spec(0.0))
    wait_for(lambda: max(radio.source.get_time_now().get_real_secs() for radio in (first, second)) < 1)
    start = first.soon()
    second.start(start=start, num_samples=3000)
    try:
        first.start([(start + 700, ones(100, num_ports=2))], start=start, num_samples=3000)
        second.wait(3000)
    finally:
        second.stop()
        first.stop()
    heard = np.flatnonzero(np.abs(second.received[1].data()) > 1e-3)
    assert heard.tolist() == [*range(700, 800)]


def test_the_coupling_may_come_from_a_file_and_full_scale_clips(uhd, tmp_path):
    (tmp_path / "coupling").write_text("0 0 0.5 0\n1 0 0 -3\n\n")
    radio = one_board(uhd, tmp_path, coupling=tmp_path / "coupling", gains="unit", lo_phase_quantum=0)
    start = radio.soon()
    received = radio.run([(start, ones(100, 2, num_ports=2))], start=start, num_samples=100)  # the DAC clips 2 to 1
    assert np.abs(received[0]) == pytest.approx(0.5, abs=1e-3)
    assert np.maximum(np.abs(received[1].real), np.abs(received[1].imag)) == pytest.approx(1, abs=1e-6)


def test_amplifiers_compress_by_what_is_behind_the_gain_setting(uhd, tmp_path):
    compression = [-0.2 + 0.1j, 0.05 - 0.15j]
    pairs = [part for k in compression for part in (k.real, k.imag)]
    radio = one_board(uhd, tmp_path, seed=6, nominal_gain=10, compression=pairs)
    radio.sink.set_gain(7, 1)
    start = radio.soon()
    rng = np.random.default_rng(2)
    sent = np.sqrt(rng.uniform(0, 1, (2, 500))) * np.exp(2j * np.pi * rng.uniform(size=(2, 500)))
    received = radio.run([(start, sent)], start=start, num_samples=500)
    after_gain = sent * np.array([1, 10 ** (-3 / 20)])[:, None]
    amplified = after_gain + np.array(compression)[:, None] * after_gain * np.abs(after_gain) ** 2
    noise = received - radio.truth() @ amplified
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(1e-10, rel=6 / np.sqrt(noise.size))  # noise_db=-100
    logged = [complex(*entry["compression"]) for entry in virtual.read_log(radio.log, "port")]
    assert logged == compression


def test_an_amplifier_is_the_same_for_carriers_that_turn(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", gains="unit", compression=[-0.4, 0.3])
    radio.sink.set_center_freq(FREQ + 1e3, 0)
    start = radio.soon()
    steps = np.repeat([[0.25, 0.5, 1.0]], 200)
    received = radio.run([(start, np.stack([steps, 0 * steps]) + 0j)], start=start, num_samples=600)[1]
    turn = received * np.exp(-2j * np.pi * 1e3 / RATE * np.arange(600))
    ratio = turn.reshape(3, 200).mean(axis=1) / steps[::200]
    wanted = 1 + (-0.4 + 0.3j) * steps[::200] ** 2
    assert ratio / ratio[0] == pytest.approx(wanted / wanted[0], abs=1e-4)


def test_network_time_may_run_faster_than_the_hosts(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, speed=4)

    def read():
        """Device time, read between two times of the host."""
        return time.monotonic(), radio.source.get_time_now().get_real_secs(), time.monotonic()

    before, first, after = read()
    wait_for(lambda: time.monotonic() > after + 0.5)
    late, second, latest = read()
    assert 4 * (late - after) - 1e-5 <= second - first <= 4 * (latest - before) + 1e-5

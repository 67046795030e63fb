# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is on radios, from reports that come late, and how radios come to a common time."""

import re

import numpy as np
import pytest
from gnuradio.dmimo.radio_clock import MIN_REPORTS, Offset, RadioClock, Radios, whole_second_shifts

RATE = 1e6
PERIOD_S = 0.05


def reports(offset_s, delays_s, start_s=100.0, asked_s=0.01):
    """(sample, arrival, asked) of a radio that reports every 50 ms, each message later and asked for earlier."""
    sent = start_s + PERIOD_S * np.arange(len(delays_s))
    return [(round((local + offset_s) * RATE), local + delay, local - asked_s)
            for local, delay in zip(sent, delays_s, strict=True)]


def feed(radios, name, offset_s, delays_s, start_s=100.0, asked_s=0.01):
    for report in reports(offset_s, delays_s, start_s, asked_s):
        radios.report(name, *report)


@pytest.mark.parametrize("offset_s", [-90.25, 0.0, 1.7e9])
def test_one_punctual_message_in_ten_seconds_gives_the_time(offset_s):
    rng = np.random.default_rng(1)
    delays = rng.exponential(0.02, 150) + 0.005
    delays[40] = 0.001
    radios = Radios(["rack"], RATE)
    feed(radios, "rack", offset_s, delays)
    assert radios.now(120.0) / RATE == pytest.approx(offset_s + 120.0 - 0.001, abs=2e-6)


def test_no_message_makes_the_time_earlier_than_another_has_shown_it():
    clock = RadioClock()
    clock.report(50.0, 100.0)
    for late in (0.3, 2.0, 0.01):
        clock.report(51.0, 101.0 + late)
        assert clock.offset_s == pytest.approx(-50.0)


def test_what_was_reported_too_long_ago_is_forgotten():
    clock = RadioClock(memory_s=1.0)
    clock.report(50.0, 100.0)
    for step in range(1, 30):  # a clock that loses 1 ms in every report
        clock.report(50.0 + 0.099 * step, 100.0 + 0.1 * step)
        oldest = max(0, step - 10)
        assert clock.offset_s == pytest.approx(-50.0 - 0.001 * oldest)


def test_a_clock_without_reports_has_no_time():
    with pytest.raises(ValueError, match="has not reported its time"):
        RadioClock().offset_s  # noqa: B018


def offsets_of(width_s, **least_s):
    return {name: Offset(least, least + width_s) for name, least in least_s.items()}


def test_radios_are_shifted_forward_to_the_latest_one():
    shifts, faults = whole_second_shifts(offsets_of(0.01, a=5.003, b=7.001, c=6.0))
    assert (shifts, faults) == ({"a": 2, "b": 0, "c": 1}, {})
    assert whole_second_shifts(offsets_of(0.4, a=4.99, b=5.18)) == ({"a": 0, "b": 0}, {})


def test_shifts_are_those_that_the_bounds_allow_however_unequally_late_messages_are():
    late = {"a": Offset(5.0, 5.02), "b": Offset(6.3, 7.04)}  # 7, of which all messages are 0.7 s late
    assert whole_second_shifts(late) == ({"a": 2, "b": 0}, {})


@pytest.mark.parametrize("offsets", [{"a": 3.0, "b": 3.37, "c": 5.01}, {"a": 3.0, "b": 2.37, "c": 3.01},
                                     {"b": 0.37, "a": 1.0, "c": 9.99}])
def test_the_radio_off_a_whole_second_from_the_others_is_named(offsets):
    shifts, faults = whole_second_shifts(offsets_of(0.02, **offsets))
    assert shifts == {}
    assert list(faults) == ["b"]
    assert "+0.37 s off a whole second" in faults["b"]
    assert "radio b" in faults["b"]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("width_s", "fraction", "faulty"), [
    (0.0, 0.009, False), (0.0, 0.011, True), (0.1, 0.109, False), (0.1, 0.111, True), (0.48, 0.49, False),
    (0.5, 0.5, False)])
def test_of_two_radios_none_is_accused_of_what_may_be_delay(width_s, fraction, faulty, sign):
    _, faults = whole_second_shifts(offsets_of(width_s, a=3.0, b=8.0 + sign * fraction))
    assert list(faults) == ["b"] * faulty


def test_all_messages_may_be_late_for_as_long_as_a_computer_is_busy():
    radios = Radios(["a", "b"], RATE)
    feed(radios, "a", 7.0, np.full(400, 0.02))
    feed(radios, "b", 6.0, np.full(400, 0.45), asked_s=0.45)
    assert radios.align() == ({"a": 0, "b": 1}, {})


def test_another_pps_is_found_out_once_messages_are_punctual_enough_even_after_the_alignment():
    radios = Radios(["a", "b"], RATE)
    feed(radios, "a", 7.0, np.full(400, 0.02))
    feed(radios, "b", 6.4, np.full(100, 0.45), asked_s=0.5)
    assert radios.align()[1] == {}
    feed(radios, "b", 6.4, [0.02], start_s=105.0, asked_s=0.05)
    (fault,) = radios.align()[1].values()
    assert re.fullmatch(r"radio b: its time is \+0\.4\d s off a whole second from that of radio a: .*no common PPS",
                        fault)


@pytest.mark.parametrize("change_s", [30.0, -40.0, 0.15])
def test_a_clock_that_has_been_set_is_known_at_once(change_s):
    clock = RadioClock()
    clock.report(50.0, 100.01, 99.95)
    clock.report(51.0 + change_s, 101.01, 100.95)
    assert clock.offset == pytest.approx((change_s - 50.01, change_s - 49.95))


def test_radios_are_aligned_once_all_have_reported_often_enough_late_messages_and_all():
    rng = np.random.default_rng(3)
    radios = Radios(["a", "b"], RATE)
    feed(radios, "a", 7.0, rng.exponential(0.01, MIN_REPORTS))
    assert radios.align() == ({}, {})
    delays = rng.exponential(0.01, MIN_REPORTS)
    delays[::2] += 0.4
    feed(radios, "b", 6.0, delays[:-1])
    assert radios.align() == ({}, {})
    feed(radios, "b", 6.0, delays[-1:])
    assert radios.align() == ({"a": 0, "b": 1}, {})
    assert radios.align() == ({}, {})  # said once


def test_one_radio_is_aligned_at_its_first_report():
    radios = Radios(["a"], RATE)
    feed(radios, "a", 7.0, [0.5], asked_s=np.inf)  # one alone is not asked
    assert radios.align() == ({"a": 0}, {})


def test_a_radio_that_has_been_shifted_shows_its_new_time_at_once():
    radios = Radios(["a"], RATE)
    feed(radios, "a", 7.0, [0.001] * 20)
    feed(radios, "a", 8.0, [0.001], start_s=101.0)
    assert radios.now(101.0) == pytest.approx(109.0 * RATE, abs=2000)


def test_a_run_waits_for_every_radio_and_takes_the_latest_sample_and_epoch():
    radios = Radios(["a", "b"], RATE)
    assert radios.missing() == "no time reported by radio a, radio b"
    feed(radios, "a", 7.0, [0.0])
    assert radios.missing() == "no time reported by radio b"
    feed(radios, "b", 7.0, [0.0])
    radios.begun("b", 9_000_000, 17)
    assert not radios.ready
    assert radios.missing() == "no begin of the streams reported by radio a"
    radios.begun("a", 8_000_000, 18)
    assert not radios.ready
    for name in ("a", "b"):
        feed(radios, name, 7.0, [0.0] * MIN_REPORTS)
    assert radios.ready
    assert (radios.first_sample, radios.epoch) == (9_000_000, 18)


def test_the_time_of_a_run_is_that_of_the_latest_radio():
    radios = Radios(["a", "b"], RATE)
    feed(radios, "a", 7.0, [0.02])
    feed(radios, "b", 7.0, [0.004])
    assert radios.now(101.0) == pytest.approx(107.996 * RATE, abs=2)


def test_a_radio_that_was_interrupted_is_waited_for_and_its_old_time_is_forgotten():
    radios = Radios(["a"], RATE)
    feed(radios, "a", 3600.0, [0.0])
    radios.begun("a", 1, 1)
    radios.interrupted("a", 2)
    assert not radios.ready
    radios.begun("a", 2, 3)
    assert not radios.ready  # its time is not known
    feed(radios, "a", 5.0, [0.0])
    assert radios.ready
    assert radios.epoch == 3
    assert radios.now(100.0) == 105_000_000


def agreed():
    """Two radios that stream and have one time."""
    radios = Radios(["a", "b"], RATE)
    for name in ("a", "b"):
        feed(radios, name, 7.0, [0.0] * MIN_REPORTS)
    assert radios.align() == ({"a": 0, "b": 0}, {})
    for name in ("a", "b"):
        radios.begun(name, 5, 1)
    assert radios.ready
    assert not radios.apart()
    return radios


def test_radios_are_compared_again_after_an_epoch_but_not_before_the_streams_begin():
    radios = agreed()
    radios.interrupted("b", 2)
    feed(radios, "b", 0.0, [0.0] * MIN_REPORTS)  # a clock that has yet to be set
    assert radios.align() == ({}, {})
    assert not radios.apart()
    radios.begun("b", 5, 3)
    feed(radios, "b", 4.0, [0.0] * (MIN_REPORTS - 1))
    assert radios.align() == ({}, {})
    assert not radios.ready
    assert "too few reports" in radios.missing()
    feed(radios, "b", 4.0, [0.0])
    assert radios.align() == ({"a": 0, "b": 3}, {})
    assert radios.align() == ({}, {})
    assert not radios.ready
    assert radios.missing() == "radio b: its time is 3 s behind that of radio a"
    radios.interrupted("b", 4)
    radios.begun("b", 5, 5)
    feed(radios, "b", 7.0, [0.0] * MIN_REPORTS)
    assert radios.align() == ({"a": 0, "b": 0}, {})
    assert radios.ready


@pytest.mark.parametrize(("ahead_s", "apart"), [
    (10.0, {"a": "radio a: its time is 3 s behind that of radio b"}),
    (4.0, {"b": "radio b: its time is 3 s behind that of radio a"})])
def test_a_radio_whose_time_leaps_is_found_out(ahead_s, apart):
    radios = agreed()
    for name, offset_s in (("a", 7.0), ("b", ahead_s)):
        feed(radios, name, offset_s, [0.0] * 300, start_s=101.0)
    assert radios.apart() == apart
    assert not radios.ready
    assert radios.align() == ({}, {})
    radios.compare_again()
    assert sorted(radios.align()[0].values()) == [0, 3]


def test_a_radio_that_loses_its_pps_is_found_out():
    radios = agreed()
    feed(radios, "b", 7.3, [0.0], start_s=101.0)
    assert list(radios.apart()) == ["b"]
    assert "+0.30 s off a whole second" in radios.apart()["b"]


def test_radios_that_have_fallen_silent_are_known():
    radios = Radios(["a", "b"], RATE)
    feed(radios, "a", 7.0, [0.0] * 100)
    feed(radios, "b", 7.0, [0.0])
    assert radios.silent(104.0, 2.0) == ["b"]


def test_strangers_and_twins_are_refused():
    with pytest.raises(ValueError, match="different names"):
        Radios(["a", "a"], RATE)
    with pytest.raises(ValueError, match=r"radio 'x': the scheduler was given the radios \['a'\]"):
        Radios(["a"], RATE).report("x", 0, 0.0)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's arithmetic: quanta of phases, moments of bursts and tunes, leads, and what follows from what."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gnuradio.dmimo import testbed
from gnuradio.dmimo.doctor import arrivals, checks, examination, fixes, leads, plan, repeatability
from gnuradio.dmimo.doctor.patient import Options
from gnuradio.dmimo.doctor.results import CHECKS, Examination, Result, report
from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings

QUANTA = repeatability.QUANTA_DEG
RATE = 1e6


def phases(rng, quantum_deg, num, std_deg, trials):
    """Phases (trials, num) after retunes with a quantum, in radians."""
    if quantum_deg:
        states = quantum_deg * rng.integers(0, 360 // quantum_deg, (trials, num))
    else:
        states = rng.uniform(0, 360, (trials, num))
    return np.radians(states + rng.uniform(0, 360, (trials, 1)) + std_deg * rng.standard_normal((trials, num)))


@pytest.mark.parametrize("quantum", QUANTA)
@pytest.mark.parametrize("std_deg", [0.2, 1, 3])
def test_every_quantum_is_named_after_16_retunes(quantum, std_deg):
    rng = np.random.default_rng([quantum, int(10 * std_deg)])
    chance = repeatability.probabilities(phases(rng, quantum, 16, std_deg, 1000), np.radians(std_deg))
    named = chance.max(axis=-1) >= repeatability.CONFIDENCE
    right = np.array(QUANTA)[chance.argmax(axis=-1)] == quantum
    assert np.mean(named & right) > 0.9
    assert np.sum(named & ~right) <= 3  # of 1000; half a state in 2^15 is what chance alone takes


@pytest.mark.parametrize("num", [4, 8, 12])
def test_the_chance_of_a_wrong_name_is_what_is_said_of_it(num):
    trials, std_deg = 4000, 2.0
    rng = np.random.default_rng(num)
    truth = rng.integers(0, len(QUANTA), trials)
    drawn = np.concatenate([phases(rng, QUANTA[index], num, std_deg, 1) for index in truth])
    chance = repeatability.probabilities(drawn, np.radians(std_deg))
    wrong, said = chance.argmax(axis=-1) != truth, 1 - chance.max(axis=-1)
    standard_error = np.sqrt(np.sum(said * (1 - said))) / trials
    # The scale of the errors is not known to the estimate, which costs it a little confidence: it may be too modest.
    assert np.mean(wrong) < np.mean(said) + 4 * standard_error
    assert np.mean(wrong) > 0.5 * np.mean(said) - 4 * standard_error


def test_two_states_that_look_like_one_by_chance_are_counted():
    chance = repeatability.probabilities(np.zeros(8), np.radians(0.1))
    assert chance[1] / chance[0] == pytest.approx(2.0**-7, rel=0.01)
    assert chance[2] / chance[0] == pytest.approx(4.0**-7, rel=0.01)


def test_a_common_phase_changes_nothing():
    rng = np.random.default_rng(2)
    drawn = phases(rng, 90, 10, 1.0, 20)
    given = repeatability.probabilities(drawn, 0.01)
    assert repeatability.probabilities(drawn + 1.234, 0.01) == pytest.approx(given)
    assert given.sum(axis=-1) == pytest.approx(1)


def test_few_or_noisy_phases_are_not_named():
    rng = np.random.default_rng(3)
    assert repeatability.verdict([0, np.pi], np.radians(1)).quantum_deg is None
    noisy = repeatability.verdict(phases(rng, 45, 16, 30, 1)[0], np.radians(30))
    assert noisy.quantum_deg is None
    assert noisy.error_probability > 0.1


def test_a_verdict_tells_the_spread_around_the_nearest_state():
    rng = np.random.default_rng(4)
    told = repeatability.verdict(phases(rng, 180, 400, 1.5, 1)[0], np.radians(1.5))
    assert told.quantum_deg == 180
    assert told.spread_deg == pytest.approx(1.5, rel=5 / np.sqrt(2 * 400))
    assert repeatability.verdict(phases(rng, 0, 16, 0, 1)[0], 0.01).spread_deg is None


@pytest.mark.parametrize(("bad", "std"), [([1.0], 0.1), ([np.nan, 0, 0], 0.1), ([0, 0, 0], -1.0)])
def test_phases_that_say_nothing_are_refused(bad, std):
    with pytest.raises(ValueError, match="phases_rad"):
        repeatability.probabilities(bad, std)


def noise(rng, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def test_a_sounding_burst_never_exceeds_its_amplitude():
    burst = arrivals.sounding_burst(0.2)
    assert np.abs(burst).max() == pytest.approx(0.2)
    assert np.abs(arrivals.tone(100, 0.2)).max() == pytest.approx(0.2)


def test_bursts_are_found_where_they_are_and_nowhere_in_noise():
    rng = np.random.default_rng(5)
    burst = arrivals.sounding_burst(1.0)
    slots = 0.3 * noise(rng, 3, 4096)
    slots[0, 256:1280] += burst
    slots[2, 293:1317] += 0.5j * burst
    found = arrivals.arrivals(slots, burst, RATE)
    assert found.heard.tolist() == [True, False, True]
    assert found.delay_samples[[0, 2]] == pytest.approx([256, 293], abs=0.2)
    power = np.mean(np.abs(burst) ** 2) / 0.09
    assert found.snr_db[0] == pytest.approx(10 * np.log10(power), abs=0.5)
    gains = arrivals.burst_gains(slots[[0, 2]], burst, found.delay_samples[[0, 2]])
    assert gains == pytest.approx(np.array([1, 0.5j]), abs=6 * 0.3 / np.sqrt(np.sum(np.abs(burst) ** 2)))


def test_a_burst_outside_its_slot_is_refused():
    with pytest.raises(ValueError, match="within the slot"):
        arrivals.burst_gains(np.zeros(2000), arrivals.sounding_burst(1.0), 1500)


def test_repeats_tell_how_uncertain_their_phase_is():
    rng = np.random.default_rng(6)
    gains = 2j * (1 + 0.05 * noise(rng, 2000, 4))
    turn, std = arrivals.repeated_phase(gains)
    expected = 0.05 / np.sqrt(2 * 4)
    assert np.std(turn) == pytest.approx(expected, rel=5 / np.sqrt(2 * 2000))
    assert np.sqrt(np.mean(std**2)) == pytest.approx(expected, rel=5 / np.sqrt(2 * 2000 * 3))
    assert np.mean(turn) == pytest.approx(np.pi / 2, abs=5 * expected / np.sqrt(2000))


def across(length, end, begin, phase=0.0):
    """A tone before `end`, another one from `begin` on, nothing between."""
    n = np.arange(length)
    old = np.exp(2j * np.pi * arrivals.BEFORE_CYCLES * n) * (n < end)
    return old + np.exp(2j * np.pi * arrivals.AFTER_CYCLES * n + 1j * phase) * (n >= begin)


@pytest.mark.parametrize("phase", np.linspace(0, 2 * np.pi, 9)[:-1])
@pytest.mark.parametrize(("end", "begin"), [(2000, 2000), (2000, 2350), (400, 400), (3700, 3900)])
def test_a_tune_is_found_at_its_sample(end, begin, phase):
    rng = np.random.default_rng([end, begin])
    moment = arrivals.tune_moment(across(4096, end, begin, phase) + 0.1 * noise(rng, 4096))
    assert moment.end_of_old == pytest.approx(end, abs=2)
    assert moment.begin_of_new == pytest.approx(begin, abs=2)
    assert moment.snr_db == pytest.approx(20, abs=1.5)


def test_a_tune_that_never_comes_or_came_at_once_is_at_an_end():
    rng = np.random.default_rng(7)
    never = arrivals.tune_moment(across(4096, 4096, 4096) + 0.1 * noise(rng, 4096))
    assert never.end_of_old > 4090
    at_once = arrivals.tune_moment(across(4096, 0, 0) + 0.1 * noise(rng, 4096))
    assert at_once.end_of_old < 40
    assert at_once.begin_of_new < 40


def test_the_ladder_goes_from_the_longest_wanted_lead_down():
    assert leads.ladder([0.05, 0.1]) == [0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]
    assert leads.ladder([0.004]) == [0.004, 0.002, 0.001]
    with pytest.raises(ValueError, match="wanted_s"):
        leads.ladder([0.0])


@pytest.mark.parametrize(("needed", "smallest", "tried"), [(0.03, 0.05, 3), (0.5, None, 1), (0.0, 0.001, 7)])
def test_a_ladder_ends_at_the_first_late_burst(needed, smallest, tried):
    found = leads.descend(lambda lead: leads.Step(lead, 50, int(lead < needed)), leads.ladder([0.1]))
    assert found.smallest_s == smallest
    assert len(found.steps) == tried


def test_the_bound_on_late_bursts_holds_at_its_confidence():
    bound = leads.late_bound(50, 0.95)
    assert bound == pytest.approx(0.0582, abs=1e-4)
    rng = np.random.default_rng(8)
    unseen = np.mean(rng.binomial(50, bound, 20000) == 0)
    assert unseen == pytest.approx(0.05, abs=5 * np.sqrt(0.05 * 0.95 / 20000))
    with pytest.raises(ValueError, match="bursts"):
        leads.late_bound(0)


def examined(**statuses):
    told = Examination("rack", "type=b200")
    told.results += [Result(one.key, statuses[one.key], "words", "fix") for one in CHECKS if one.key in statuses]
    return told


def check(key):
    return next(one for one in CHECKS if one.key == key)


def test_a_check_is_skipped_for_where_the_trouble_began():
    told = examined(found="passed", settings="passed", reference="passed", pps="failed", time="skipped",
                    synthesizers="skipped")
    assert told.reason_to_skip(check("streams")) == "needs: PPS edges agree"
    assert told.reason_to_skip(check("pps")) == ""


def test_checks_need_only_what_comes_before_them():
    seen = set()
    for one in CHECKS:
        assert set(one.needs) <= seen
        seen.add(one.key)


def test_a_report_passes_only_if_every_radio_does():
    good, bad = examined(found="passed"), examined(found="failed")
    assert report([good])["passed"]
    assert not report([good, bad])["passed"]
    assert not report([])["passed"]
    bad.skip_remaining("gone")
    assert [result["status"] for result in bad.as_dict()["checks"]] == ["failed"] + ["skipped"] * (len(CHECKS) - 1)


@pytest.mark.parametrize(("name", "family"), [("type=b200,serial=1", "b200"), ("B210", "b200"), ("X310", "x300"),
                                              ("n310", "n3xx"), ("addr=192.168.10.2,type=x300", "x300"),
                                              ("type=virtual", ""), ("", "")])
def test_advice_is_for_the_family_of_the_device(name, family):
    assert fixes.family(name) == family


@pytest.mark.parametrize(("given", "each"), [
    ("type=b200,serial=30A", ["type=b200,serial=30A"]), ("", [""]),
    ("type=x300,addr0=10.0.0.2, addr1=10.0.0.3,master_clock_rate=200e6",
     ["type=x300,addr=10.0.0.2,master_clock_rate=200e6", "type=x300,addr=10.0.0.3,master_clock_rate=200e6"]),
])
def test_boards_of_one_radio_are_looked_for_one_by_one(given, each):
    assert checks.arguments_of_boards(given) == each


@pytest.mark.parametrize("kind", ["b200", "x300", "n3xx", "x4xx", "usrp2", ""])
def test_every_device_gets_advice_in_whole_sentences(kind):
    texts = [fixes.not_opened(kind), fixes.refused(kind), fixes.reference("external", kind), fixes.performance(kind),
             fixes.reference("gpsdo", kind), fixes.common_time(kind), fixes.synthesizers(kind), fixes.timed_tune(kind),
             fixes.not_in_time(kind), fixes.not_found(f"type={kind}"), *(fixes.phase(q, kind) for q in QUANTA),
             fixes.undecided(True), fixes.undecided(False)]
    for text in texts:
        assert text.endswith((".", "?")), text
        assert "  " not in text
        assert ".." not in text.replace("...", "")


BED = """
version: 1
center_freq: 2.4e+9
usrp:
  tx_amplitude: 0.1
  lead_s: 0.2
  loop_delay: given
  radios: [{name: one, args: "type=b200,serial=A", time_source: external}, {name: two, args: "type=b200,serial=B"}]
nodes:
  - {name: ap1, num_ports: 2, radio: {name: one, tx_gains_db: [30], loop_delays_samples: [3]}}
  - {name: ap2, num_ports: 1, tx_gain_db: 20, radio: {name: two}}
slots: {slot_samples: 512}
"""


def test_radios_are_those_of_the_file_whatever_its_front_end():
    bed = testbed.parse(BED)
    assert bed.frontend == "simulated"
    radios = plan.radios(bed)
    assert [port.tx_gain_db for port in radios["one"].ports] == [30, 30]
    assert [port.tx_gain_db for port in radios["two"].ports] == [20]
    assert list(plan.radios(bed, ["two"])) == ["two"]
    with pytest.raises(ValueError, match="--radio three: no such radio; allowed: one, two"):
        plan.radios(bed, ["three"])


def test_options_are_within_what_the_file_lets_a_run_do():
    options = plan.options(testbed.parse(BED), transmit=True, retunes=8, duration_s=1.0)
    assert options.amplitude == 0.1
    assert options.leads_s == (0.2, 0.05)
    assert options.loop_delays == {"ap1": (3, 3), "ap2": (0,)}
    with pytest.raises(ValueError, match="--retunes 2"):
        plan.options(testbed.parse(BED), transmit=True, retunes=2, duration_s=1.0)


def test_a_testbed_without_radios_is_told_what_to_add():
    with pytest.raises(ValueError, match=r"add a section usrp") as told:
        plan.radios(testbed.parse(BED[:BED.index("usrp:")] + BED[BED.index("nodes:"):]))
    snippet = str(told.value).split("\n\n", 1)[1]
    rest = "  - {name: ap2, radio: {channels: [2]}}\nslots: {slot_samples: 512}"
    bed = testbed.parse(f"version: 1\n{snippet}\n{rest}")
    assert bed.usrp.radios[0].name == "rack"


@pytest.mark.parametrize(("before", "after", "well"), [
    ((0.99, 1.01, 7.0), (1.99, 2.01, 8.0), True),
    ((0.99, 1.9, 7.0), (1.91, 2.01, 8.0), True),  # the first was noticed late
    ((0.99, 1.01, 7.0), (1.5, 3.01, 9.0), True),  # one was missed, since nobody looked
    ((0.99, 1.01, 7.0), (2.99, 3.01, 9.0), False),  # one did not come
    ((0.99, 1.01, 7.0), (1.49, 1.51, 7.5), False),
    ((0.99, 1.01, 7.0), (1.99, 2.01, 6.0), False),
])
def test_edges_are_a_second_apart_unless_it_is_certain_that_they_are_not(before, after, well):
    assert checks.second_apart(checks.Edge(*before), checks.Edge(*after)) is well


@pytest.mark.parametrize(("there", "apart_s"), [
    ([(4.998, 5.001), (5.998, 6.001)], 0.0),
    ([(3.998, 4.9)], 0.0),  # a busy machine looked late
    ([(4.298, 4.301), (4.999, 6.5)], 0.3),  # one that is certain is enough
    ([(3.698, 3.701)], -0.3),
    ([(4.1, 4.2)], 0.15),
    ([(4.052, 4.054)], 0.053),
    ([(4.048, 4.049)], 0.0),
])
def test_edges_of_boards_are_apart_only_where_it_is_certain(there, apart_s):
    here = [checks.Edge(2.9995, 3.0005, 7.0), checks.Edge(3.5, 4.2, 8.0)]
    assert checks.edges_apart(here, [checks.Edge(*times, 7.0) for times in there]) == pytest.approx(apart_s, abs=1e-3)


class Stalling:
    """A radio of two boards whose edges are a second apart, and a computer that stands still after some readings."""

    boards = range(2)

    def __init__(self, stalls_s):
        self.now_s, self.stalls_s, self.sources = 0.4, stalls_s, [self]

    def get_time_last_pps(self, board):
        last = SimpleNamespace(get_real_secs=lambda second=float(int(self.now_s)): second)
        self.sleep(self.stalls_s.pop(0) if self.stalls_s else 1e-4)
        return last

    def sleep(self, seconds):
        self.now_s += seconds

    def monotonic(self):
        return self.now_s


@pytest.mark.parametrize("stalls_s", [[], [0.7], [1e-4] * 3 + [0.7], [1e-4] * 2 + [1.7], [1e-4] * 101 + [0.9] * 3,
                                      [1e-4] * 2 + [2.4]])
def test_a_computer_that_stands_still_accuses_no_pps(monkeypatch, stalls_s):
    radio = Stalling(stalls_s)
    monkeypatch.setattr(checks, "time", radio)
    patient = SimpleNamespace(bench=SimpleNamespace(radio=radio), settings=SimpleNamespace(time_source="external"))
    told = checks.pps(patient)
    assert told.status == "passed", told


def crashes(pipe, settings, options, log):
    """A process in place of the doctor's, in which UHD ends everything after the first check."""
    Path(log).write_text("[INFO] hello\nterminate called: the cable is gone\n")
    pipe.send((Result("found", "passed", "a device"), ["board 0 (A)"]))
    os.abort()


def hangs(pipe, settings, options, log):
    """A process in place of the doctor's, in which UHD never returns."""
    pipe.send((Result("found", "passed", "a device"), []))
    time.sleep(3600)


SETTINGS = RadioSettings("type=none", 1e6, {"ap1": [RadioPort(0, 1e9)]})


def test_a_crash_of_uhd_fails_the_check_under_way_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(examination, "_work", crashes)
    begun = []
    told = examination.examine("rack", SETTINGS, Options(), log=tmp_path / "uhd.log",
                               watch=lambda _, check: begun.append(check and check.key))
    assert [result.status for result in told.results] == ["passed", "failed"] + ["skipped"] * 10
    assert "the cable is gone" in told.results[1].measured
    assert told.results[2].measured == "the radio no longer answers"
    assert told.boards == ["board 0 (A)"]
    assert begun == ["found", "settings", None]


def test_a_radio_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(examination, "_work", hangs)
    monkeypatch.setattr(examination, "LIMITS_S", {"found": 100.0, "settings": 0.3})
    monkeypatch.setattr(examination, "STOP_LIMIT_S", 0.1)
    told = examination.examine("rack", SETTINGS, Options())
    assert told.results[1].measured.startswith("the radio did not answer within 0.3 s")
    assert not told.passed

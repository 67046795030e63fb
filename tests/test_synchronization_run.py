# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole synchronisation runs of a testbed on the simulated network, minutes of network time."""

import numpy as np
from gnuradio.dmimo import reports, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.core.synchronization_planning import gain_loss_db
from gnuradio.dmimo.direct import DirectRun

TESTBED = """
version: 1
seed: {seed}
samp_rate: 1.0e+6
node_defaults: {{oscillator: {{linewidth_hz: 1.0e-6, drift_hz: 0.02, drift_period_s: 60}}}}
nodes:
  - {{name: ap1, num_ports: 4, oscillator: {{cfo_hz: 120}}}}
  - {{name: ap2, num_ports: 4, oscillator: {{cfo_hz: -80}}}}
  - {{name: ue1, kind: ue, oscillator: {{cfo_hz: 10}}}}
propagation: {{delays: false, coupling_db: 0}}
noise: {{snr_db: 20}}
slots: {{slot_samples: 256, pilot_samples: 32, prefix_samples: 8, lead_samples: 8, num_subcarriers: 24,
         num_subbands: 1}}
verification: {{uplink_repeats: 2, repeats: 2, random_starts: 2}}
beamsync: {{sync_samples: 96, budget_deg: {budget}, linewidth_hz: 1.0e-6, drift_hz: 0.02, drift_period_s: 60,
            watches: 3}}
"""


def play(duration_s, seed=1, budget=10.0, bed=TESTBED):
    assembly = Assembly(testbed.parse(bed.format(seed=seed, budget=budget)), protocol="sync")
    network, collectors = assembly.network(), assembly.collectors()
    roles = {name: assembly.roles(name) for name in assembly.schedule.nodes}
    run = DirectRun(assembly.schedule, network, roles, list(collectors.values()),
                    until_sample=round(duration_s * 1e6))
    error = run.run()
    return reports.report(reports.Run(assembly, network, collectors, error, run.releases, run.end_sample))


def test_planned_resynchronisation_keeps_the_gain_within_the_budget_for_ten_minutes():
    budget = 10.0
    report = play(600.0, budget=budget)
    assert report["error"] is None
    assert report["duration_s"] > 600
    assert report["loss_db"] < gain_loss_db(np.radians(budget), 2)
    assert report["phase_error_deg"] < budget
    # Synchronising as often as possible would meet any budget: the plan must use what it has.
    assert report["mean_interval_s"] > 0.5
    before_due = [point["phase_error_deg"] for point in report["watches"][2::3]]
    assert np.sqrt(np.mean(np.square(before_due))) > 0.2 * budget


def test_gain_of_two_access_points_with_16_antennas_is_ideal_right_after_synchronisation():
    """Within 0.1 dB of the ideal at 20 dB, through samples, for every one of six networks."""
    bed = TESTBED.replace("num_ports: 4", "num_ports: 16").replace("slot_samples: 256", "slot_samples: 720")
    for seed in range(1, 7):
        report = play(0.0, seed, bed=bed)
        assert report["error"] is None
        first = report["watches"][0]
        assert abs(first["ideal_gain_db"] - first["coherent_gain_db"]) < 0.1
        assert first["coherent_gain_db"] > report["uncalibrated_gain_db"] + 1.0


def test_oscillators_worse_than_assumed_are_noticed_and_met_with_shorter_intervals():
    worse = TESTBED.replace("linewidth_hz: 1.0e-6, drift_hz: 0.02, drift_period_s: 60}}}}",
                            "linewidth_hz: 1.0e-6, drift_hz: 0.2, drift_period_s: 60}}}}")
    assert worse != TESTBED
    report = play(30.0, bed=worse)
    assert report["error"] is None
    assert report["exceeded_synchronisations"] > 0
    assert any("worse than" in doubt for doubt in report["doubts"])
    as_assumed = play(30.0)
    assert as_assumed["doubts"] == []
    assert report["mean_interval_s"] < 0.7 * as_assumed["mean_interval_s"]
    # A frequency that has moved is learnt: the phase is not lost again and again.
    events = [entry["followers"]["ap2"]["event"] for entry in report["history"] if entry["phase"] == "phase"]
    assert events.count("applied") > 0.5 * len(events)
    assert "lost" not in events
    assert report["phase_error_deg"] < 15


def test_a_start_with_few_ports_and_long_watches_settles_before_it_watches():
    """One port each: the frequency stage leaves a hertz, which the first watches would turn by more than a turn."""
    bed = TESTBED.replace("num_ports: 4", "num_ports: 1").replace("random_starts: 2", "random_starts: 200")
    report = play(3.0, bed=bed)
    assert report["doubts"] == []
    events = [entry["followers"]["ap2"]["event"] for entry in report["history"] if entry["phase"] == "phase"]
    assert set(events[1:]) == {"applied"}


def test_intervals_that_cannot_be_kept_are_said():
    slow = TESTBED.replace("watches: 3", "watches: 3, min_interval_s: 5, max_interval_s: 6")
    report = play(40.0, bed=slow)
    assert report["late_synchronisations"] > 0
    assert any("later than planned" in doubt for doubt in report["doubts"])


NO_PPS = """
version: 1
seed: {seed}
samp_rate: 1.0e+6
center_freq: 3.5e+9
nodes:
  - {{name: ap1, num_ports: 2}}
  - {{name: ap2, num_ports: 2, oscillator: {{cfo_hz: -7000}}, clock: {{offset_samples: 1000.4, follow_cfo: true}}}}
  - {{name: ue1, kind: ue, oscillator: {{cfo_hz: 25}}}}
propagation: {{delays: false, coupling_db: 0}}
noise: {{snr_db: 20}}
slots: {{slot_samples: 4096}}
verification: {{uplink_repeats: 2, repeats: 2, random_starts: 2}}
beamsync: {{timing: true, sync_samples: 512, budget_deg: {budget}, linewidth_hz: 1.0e-6, drift_hz: 1.0e-3, watches: 2,
            max_interval_s: 10}}
"""


def test_a_node_without_pps_is_in_time_and_in_phase():
    """Late by a millisecond, 2 ppm slow: every correction of 7 kHz counts received samples by their time in the air."""
    report = play(20.0, bed=NO_PPS)
    assert report["error"] is None
    assert report["doubts"] == []
    assert report["phase_error_deg"] < 10
    first = next(entry for entry in report["history"] if entry["phase"] == "phase")
    assert abs(first["followers"]["ap2"]["true_error_deg"]) < 1.5
    # However well it is known from the start, it settles within seconds.
    assert [entry["time_s"] < 5 for entry in report["history"] if entry["phase"] == "phase"][:4] == [True] * 4
    tracking = [entry["followers"]["ap2"] for entry in report["history"] if entry["phase"] == "timing_tracking"]
    assert len(tracking) > 2
    assert max(abs(entry["clock_offset_samples"]) for entry in tracking) < 0.1

# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases that are further apart than the watchdog waits, on virtual USRPs."""

from qa_usrp_protocols import BIDIRECTIONAL, on_radio, run


def test_a_pattern_much_longer_than_the_watchdog_waits_is_not_given_up(tmp_path):
    text = BIDIRECTIONAL.replace("pattern_s: 0.1", "pattern_s: 8.0").replace("watchdog_s: 5", "watchdog_s: 0.4")
    assembly, _ = on_radio(text, tmp_path)
    flowgraph, outcome = run(assembly)
    assert outcome.error is None
    samples = flowgraph.scheduler.end_sample - flowgraph.scheduler.first_sample
    assert samples > 4.0 * assembly.testbed.samp_rate
    assert outcome.report["loss_db"] < 0.1

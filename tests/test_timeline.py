# SPDX-License-Identifier: GPL-3.0-or-later
"""Timelines: what holds from a sample on, and how much of the past is kept."""

import numpy as np
import pytest
from gnuradio.dmimo.simulation.timeline import Timeline


@pytest.mark.parametrize("kept", [0, 8])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_timeline_keeps_the_past_that_it_is_asked_to_and_no_more(kept, gaps):
    timeline = Timeline(kept)
    for k in range(100):
        timeline.set(10 * k, np.array([k]))
        assert len(timeline) == (1 if gaps else min(k + 1, 3))
        assert len(timeline._starts) <= kept + kept // 4 + 3
        assert [int(timeline.at(10 * max(0, k - back))[0]) for back in range(kept)] == [
            max(0, k - back) for back in range(kept)
        ]
        timeline.settle(10 * (k - 1))
        if gaps:
            timeline.begin()
            assert timeline.is_empty


def test_a_timeline_can_go_back():
    timeline = Timeline(kept=10)
    for start in (0, 100, 200):
        timeline.set(start, np.array([start]))
    timeline.begin()
    timeline.set(150, np.array([7]))
    assert [int(timeline.at(sample)[0]) for sample in (50, 149, 150, 250)] == [0, 100, 7, 7]
    assert [(a < 0, int(v[0])) for a, _, v in timeline.stretches()] == [(True, 7)]

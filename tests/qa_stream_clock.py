# SPDX-License-Identifier: GPL-3.0-or-later
"""The watch over a receive stream: samples counted, gaps taken for what they are, lost times told."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr
from gnuradio.dmimo.blocks.stream_clock import CHUNK, stream_clock
from gnuradio.dmimo.blocks.timetags import rate_ratio, time_to_pmt
from graph import message_sink

RATE = 1_000_000
FIRST = 3_999_000  # a second passes within the stream


def run(tags, chunks=4):
    """A clock that has seen a stream with times (seconds, fraction), or samples, at these offsets."""
    values = [
        (offset, pmt.make_tuple(pmt.from_uint64(at[0]), pmt.from_double(at[1])))
        if isinstance(at, tuple)
        else (offset, time_to_pmt(at, rate_ratio(RATE)))
        for offset, at in tags
    ]
    stream = [gr.tag_utils.python_to_tag((offset, pmt.intern("rx_time"), value, pmt.PMT_F)) for offset, value in values]
    source = blocks.vector_source_c(np.zeros(chunks * CHUNK, np.complex64), False, 1, stream)
    clock, errors, tb = stream_clock(RATE), message_sink(), gr.top_block()
    tb.connect(source, clock)
    tb.msg_connect(clock, "error", errors, "in")
    tb.run()
    assert errors.messages == []
    return clock


@pytest.mark.parametrize(
    "tags",
    [
        [(0, FIRST)],
        [(0, FIRST), (100, FIRST + 100), (2 * CHUNK, FIRST + 2 * CHUNK)],  # tags that say nothing new
        [(0, FIRST), (100, FIRST + 5100), (CHUNK + 1, FIRST + 20_000)],  # overflows
    ],
)
def test_times_that_go_on_or_leave_samples_out_are_no_fault(tags):
    clock = run(tags)
    assert clock.fault is None
    assert clock.num_samples == 4 * CHUNK


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        ([(0, FIRST), (100, FIRST + 99)], "time went back by 1 samples to sample 3999099"),
        ([(0, FIRST), (CHUNK, FIRST + 50_000), (2 * CHUNK, FIRST)], f"went back by {50_000 + CHUNK} samples"),
        ([(0, FIRST), (100, (4, 0.1000003)), (CHUNK, FIRST + CHUNK - 1)], "time went back by 1 samples"),
    ],
)
def test_times_that_go_back_are_a_fault(tags, fault):
    assert fault in run(tags).fault


@pytest.mark.parametrize(
    ("tags", "off_grid"),
    [
        ([(0, FIRST), (100, (4, 0.1000003))], "0.300 samples off the sample grid"),
        ([(0, FIRST), (100, (4, 0.1000003)), (CHUNK, FIRST + 2 * CHUNK)], None),
    ],
)
def test_a_stream_off_the_sample_grid_is_told_until_it_is_on_the_grid(tags, off_grid):
    clock = run(tags)
    assert clock.fault is None
    assert off_grid in clock.off_grid if off_grid else clock.off_grid is None


def test_a_second_start_knows_nothing_of_the_first():
    clock = run([(0, FIRST), (100, FIRST)])
    assert clock.fault is not None
    tb, source = gr.top_block(), blocks.vector_source_c(np.zeros(CHUNK, np.complex64))
    tb.connect(source, clock)
    tb.run()
    assert (clock.fault, clock.num_samples) == (None, CHUNK)

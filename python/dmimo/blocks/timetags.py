# SPDX-License-Identifier: GPL-3.0-or-later
"""Time tags as UHD writes them, (whole seconds, fraction), to and from integer samples since the epoch, exactly."""

from fractions import Fraction

import pmt

from ..radio_time import rate_ratio, sample_of, time_of

__all__ = ["RX_TIME", "rate_ratio", "sample_from_pmt", "time_to_pmt"]

RX_TIME = pmt.intern("rx_time")


def time_to_pmt(sample: int, rate: Fraction):
    """Tag value of the time of a sample: tuple (uint64 whole seconds, double fraction)."""
    seconds, fraction = time_of(sample, rate)
    return pmt.make_tuple(pmt.from_uint64(seconds), pmt.from_double(fraction))


def sample_from_pmt(value, rate: Fraction) -> int:
    """Sample of a tag value; ValueError if the time lies off the sample grid by more than 0.01 sample."""
    if not (pmt.is_tuple(value) and pmt.length(value) == 2):
        raise ValueError(f"time tag {value}: must be a tuple of whole seconds and fraction")
    return sample_of(pmt.to_uint64(pmt.tuple_ref(value, 0)), pmt.to_double(pmt.tuple_ref(value, 1)), rate)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Time tags as UHD writes them, (whole seconds, fraction), to and from integer samples since the epoch, exactly."""

from fractions import Fraction

import pmt

from ..radio_time import OffGrid, position, rate_ratio, sample_of, time_of

__all__ = ["RX_TIME", "OffGrid", "nearest_from_pmt", "rate_ratio", "sample_from_pmt", "time_to_pmt"]

RX_TIME = pmt.intern("rx_time")


def time_to_pmt(sample: int, rate: Fraction):
    """Tag value of the time of a sample: tuple (uint64 whole seconds, double fraction)."""
    seconds, fraction = time_of(sample, rate)
    return pmt.make_tuple(pmt.from_uint64(seconds), pmt.from_double(fraction))


def sample_from_pmt(value, rate: Fraction) -> int:
    """Sample of a tag value; OffGrid if the time lies off the sample grid by more than 0.01 sample."""
    return sample_of(*_time_from_pmt(value), rate)


def nearest_from_pmt(value, rate: Fraction) -> int:
    """Sample nearest to a tag value."""
    return position(*_time_from_pmt(value), rate)[0]


def _time_from_pmt(value) -> tuple[int, float]:
    if not (pmt.is_tuple(value) and pmt.length(value) == 2):
        raise ValueError(f"time tag {value}: must be a tuple of whole seconds and fraction")
    return pmt.to_uint64(pmt.tuple_ref(value, 0)), pmt.to_double(pmt.tuple_ref(value, 1))

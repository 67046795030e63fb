# SPDX-License-Identifier: GPL-3.0-or-later
"""Time tags as UHD writes them, (whole seconds, fraction), to and from integer samples since the epoch, exactly."""

from fractions import Fraction

import pmt

RX_TIME = pmt.intern("rx_time")
MAX_RESIDUAL_SAMPLES = 0.01


def rate_ratio(samp_rate: float) -> Fraction:
    """Sample rate as a ratio of integers, so that time arithmetic is exact."""
    if not samp_rate > 0:
        raise ValueError(f"samp_rate = {samp_rate}: must be positive")
    return Fraction(samp_rate).limit_denominator(10**6)


def time_to_pmt(sample: int, rate: Fraction):
    """Tag value of the time of a sample: tuple (uint64 whole seconds, double fraction)."""
    seconds, rest = divmod(sample * rate.denominator, rate.numerator)
    return pmt.make_tuple(pmt.from_uint64(seconds), pmt.from_double(rest / rate.numerator))


def sample_from_pmt(value, rate: Fraction) -> int:
    """Sample of a tag value; ValueError if the time lies off the sample grid by more than 0.01 sample."""
    if not (pmt.is_tuple(value) and pmt.length(value) == 2):
        raise ValueError(f"time tag {value}: must be a tuple of whole seconds and fraction")
    seconds, fraction = pmt.to_uint64(pmt.tuple_ref(value, 0)), pmt.to_double(pmt.tuple_ref(value, 1))
    # Whole samples in integers; only what is left, less than a second, in floating point.
    whole, rest = divmod(seconds * rate.numerator, rate.denominator)
    exact = (rest + fraction * rate.numerator) / rate.denominator
    sample = round(exact)
    if abs(exact - sample) > MAX_RESIDUAL_SAMPLES:
        raise ValueError(f"time tag ({seconds}, {fraction}): {exact - sample:+.3f} samples off the sample grid")
    return whole + sample

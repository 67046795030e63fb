# SPDX-License-Identifier: GPL-3.0-or-later
"""One slot in every period of a stream."""


def check_period(slot_samples: int, period_samples: int, offset_samples: int) -> int:
    """Return the period, that of a slot where it is 0; ValueError unless the slot lies inside."""
    period = period_samples or slot_samples
    if not 0 <= offset_samples <= period - slot_samples:
        raise ValueError(f"period_samples = {period_samples}, offset_samples = {offset_samples}: a slot of "
                         f"{slot_samples} samples must lie inside the period")
    return period

# SPDX-License-Identifier: GPL-3.0-or-later
"""Received bursts of any origin, slot by slot: those of a `burst_receiver`, or plain PDUs with a time."""

from fractions import Fraction

import numpy as np
import pmt

from . import messages
from .timetags import RX_TIME, sample_from_pmt


def slots_of(message, num_ports: int) -> list[tuple[object, np.ndarray]]:
    """Dictionary, and samples complex64 (num_ports, n), of every slot of a burst; ValueError if it is none.

    A burst with `grants` is taken apart, and each slot's dictionary gets its `slot` and `start`.
    """
    if not (pmt.is_pair(message) and pmt.is_dict(pmt.car(message)) and pmt.is_c32vector(pmt.cdr(message))):
        raise ValueError("message is no burst: must be a pair of a dictionary and a c32vector")
    meta = pmt.car(message)
    slots = [meta]
    if pmt.dict_has_key(meta, messages.GRANTS):
        slots = [pmt.dict_add(pmt.dict_add(meta, messages.SLOT, pmt.from_long(grant.slot)), messages.START,
                              pmt.from_long(grant.start)) for grant in messages.grants(meta)]
    if pmt.length(pmt.cdr(message)) == 0:
        return [(slot, np.empty((num_ports, 0), np.complex64)) for slot in slots]
    samples = messages.vector_from_pmt(pmt.cdr(message))
    said = pmt.to_long(pmt.dict_ref(meta, messages.NUM_PORTS, pmt.from_long(num_ports)))
    if said != num_ports or samples.size % (len(slots) * num_ports):
        raise ValueError(f"burst of {said} ports, {samples.size} samples: must have num_ports = "
                         f"{num_ports} ports of the same length")
    return list(zip(slots, samples.reshape(len(slots), num_ports, -1), strict=True))


def start_of(meta, rate: Fraction) -> int | None:
    """Absolute sample of a burst, from `start` or `rx_time`; None where it has neither."""
    start = pmt.dict_ref(meta, messages.START, pmt.PMT_NIL)
    if not pmt.is_null(start):
        return pmt.to_long(start)
    time = pmt.dict_ref(meta, RX_TIME, pmt.PMT_NIL)
    return None if pmt.is_null(time) else sample_from_pmt(time, rate)


def bad_status(meta) -> str | None:
    """What is wrong with a burst by its own account; None if nothing."""
    status = pmt.symbol_to_string(pmt.dict_ref(meta, messages.STATUS, messages.OK))
    return None if status == "ok" else f"burst is {status}"


def copied(target, source, *keys):
    """Dictionary with those of the keys that another one has."""
    for key in keys:
        if pmt.dict_has_key(source, key):
            target = pmt.dict_add(target, key, pmt.dict_ref(source, key, pmt.PMT_NIL))
    return target


def dropped(meta, start: int | None, reason: str):
    """Message that a burst is not answered, with its `slot` and `start` where it has them."""
    known = {} if start is None else {"start": start}
    return copied(messages.encode("dropped", reason=reason, **known), meta, messages.SLOT)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The message formats between blocks, encoded and decoded here only.

Control (scheduler to nodes; without grants and queries, as `phases`, to collectors too) and status (back) are PMT
dictionaries with a `type`:

======== =================================================== ==========================================================
type     keys                                                meaning
======== =================================================== ==========================================================
begin    run, epoch, hash                                    hold this schedule and answer `ready`
grant    run, epoch, grants                                  attempts at slots: s64vector (slot, attempt, start) ...
query    run, epoch                                          answer `alive`
phase    run, epoch, phase, grants                           the phase is complete: publish its results
product  run, epoch, phase, trusted, reasons, values;        what a phase produced: answer `taken`
         pace_samples where it sets one
end      run, epoch, error                                   the run is over; error is empty where it succeeded
ready    run, epoch, node, hash
ack      run, epoch, node, grants, status                    these attempts are over: ok, or what went wrong
taken    run, epoch, node, phase
alive    run, epoch, node
sent     run, epoch, node, port, event, status; sample       what a radio says of a burst of a port: UHD's event, ok or
         where the radio gives a time                        what went wrong, network time of that (of ok: the end)
results  run, epoch, node, phase, values                     from a node to the collectors
======== =================================================== ==========================================================

Between scheduler and radios (`usrp_array`), on the same ports and on `events`, from a radio to its nodes; all samples
are device time:

=========== ================================================ ==========================================================
type        keys                                             meaning
=========== ================================================ ==========================================================
ask         time                                             to several radios: the scheduler's own time [s], now
radio_time  radio, sample, asked                             device time at which this was sent, every 50 ms; the last
                                                             time that `ask` had told before, -inf for none
align       radio, seconds                                   shift the time by so many whole seconds, then go on
radio_begin radio, sample, epoch; carriers (asked for, tuned the streams run from this sample on
            to) [Hz] with a reference that radios share
radio_epoch radio, epoch, reason                             another epoch has begun: a retune, a gain change, lost time
radio_event event, node, port, board, channel, error;        what became of a burst of a port: UHD's event, error empty
            sample where the radio gives a time              or what went wrong
=========== ================================================ ==========================================================

From a node to its own blocks: `delays` (samples: int64, one for each port) to the receiver, by how much later to cut
each port's slots; to an external beamformer `beam` (node, slot, attempt, beam, sample, seconds, fraction), the beam of
a slot and the device time at which it begins, in samples and as (seconds, fraction of a second).

Blocks that are wired by hand, without a scheduler, speak dictionaries with a `type` too: `csi` (channels, from an
`ofdm_sounder`), `cars` (what was sent in an answer, from a `cars_responder`), `coefficients` (from a `cars_reader`),
`tracked` (from a `phase_tracker`), `dropped` (what was not answered, and why). Their keys are listed in the block that
sends them.

A burst is a PDU ``(dict . c32vector)``. A burst to send is port-major and has the keys `tx_time`, `beam`, `slot` and,
where the node shifts its clock, `shift`, which become tags. It is one slot, or several equal ones in a row: `beam` and
`slot` are then s32vectors, an entry for each, otherwise integers. A received one has `grants`, `status`, `node` and
`num_ports`; the slots of its grants follow one another, each port-major, and are those that were complete together.
Its status holds for all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import pmt

from ..protocols.slots import Grant, Product
from .memory import array_at

TYPE = pmt.intern("type")
TX_TIME = pmt.intern("tx_time")
RUN = pmt.intern("run")
EPOCH = pmt.intern("epoch")
NODE = pmt.intern("node")
SLOT = pmt.intern("slot")
START = pmt.intern("start")
STATUS = pmt.intern("status")
BEAM = pmt.intern("beam")
NUM_PORTS = pmt.intern("num_ports")
SHIFT = pmt.intern("shift")
GRANTS = pmt.intern("grants")
SYSTEM = pmt.intern("system")
DONE = pmt.cons(pmt.intern("done"), pmt.from_long(1))  # to a block's own system port: it has finished
OK = pmt.intern("ok")
EMPTY_BURST = pmt.init_c32vector(0, [])

# By the type of the elements: how to make a vector of n equal ones, how to tell one. `pmt.blob_data` gives the memory
# of any uniform vector; pmt's other accessors go through Python lists.
_UNIFORM = {
    np.dtype(np.complex64): (pmt.make_c32vector, pmt.is_c32vector),
    np.dtype(np.complex128): (pmt.make_c64vector, pmt.is_c64vector),
    np.dtype(np.float32): (pmt.make_f32vector, pmt.is_f32vector),
    np.dtype(np.float64): (pmt.make_f64vector, pmt.is_f64vector),
    np.dtype(np.int64): (pmt.make_s64vector, pmt.is_s64vector),
}


def vector_to_pmt(array: np.ndarray):
    """Uniform vector of a flattened complex64/128, float32/64 or int64 array; exact to the bit."""
    if array.dtype not in _UNIFORM:
        raise ValueError(f"dtype = {array.dtype}: must be one of {', '.join(map(str, _UNIFORM))}")
    vector = _UNIFORM[array.dtype][0](array.size, 0)
    if array.size:
        array_at(pmt.blob_data(vector), array.size, array.dtype).reshape(array.shape)[...] = array
    return vector


def vector_from_pmt(vector) -> np.ndarray:
    """Flat array of a uniform vector made by `vector_to_pmt`: a copy."""
    for dtype, (_, is_one) in _UNIFORM.items():
        if is_one(vector):
            num = pmt.length(vector)
            return array_at(pmt.blob_data(vector), num, dtype).copy() if num else np.empty(0, dtype)
    raise ValueError("message holds no uniform vector of a known type")


def _value_to_pmt(value):
    if isinstance(value, np.ndarray):
        array = value.astype(np.int64) if value.dtype.kind in "iub" else value
        return pmt.cons(vector_to_pmt(np.array(array.shape, np.int64)), vector_to_pmt(array))
    if isinstance(value, str):
        return pmt.intern(value)
    if isinstance(value, bool | np.bool_):
        return pmt.from_bool(bool(value))
    if isinstance(value, int | np.integer):
        return pmt.from_long(int(value))
    if isinstance(value, float | np.floating):
        return pmt.from_double(float(value))
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        vector = pmt.make_vector(len(value), pmt.PMT_NIL)
        for index, item in enumerate(value):
            pmt.vector_set(vector, index, pmt.intern(item))
        return vector
    raise ValueError(f"value of type {type(value).__name__} has no message form")


def _value_from_pmt(value):
    if pmt.is_pair(value):
        return vector_from_pmt(pmt.cdr(value)).reshape(vector_from_pmt(pmt.car(value)))
    if pmt.is_vector(value):
        return tuple(pmt.symbol_to_string(pmt.vector_ref(value, k)) for k in range(pmt.length(value)))
    return pmt.to_python(value)


def encode(kind: str, **fields):
    """Control or status message: strings, numbers, arrays, tuples of strings, nested mappings of these."""
    message = pmt.dict_add(pmt.make_dict(), TYPE, pmt.intern(kind))
    for key, value in fields.items():
        if isinstance(value, Mapping):
            value = encode("values", **value)
        elif not isinstance(value, pmt.pmt_base):
            value = _value_to_pmt(value)
        message = pmt.dict_add(message, pmt.intern(key), value)
    return message


def kind(message) -> str:
    """Type of a control or status message; empty for anything else."""
    value = pmt.dict_ref(message, TYPE, pmt.PMT_NIL)  # nil too where the message is no dictionary
    return pmt.symbol_to_string(value) if pmt.is_symbol(value) else ""


def get(message, key: str):
    """Value of a key, as `encode` was given it; ValueError if it is missing."""
    value = pmt.dict_ref(message, pmt.intern(key), pmt.PMT_NIL)
    if pmt.is_null(value):
        raise ValueError(f"message of type {kind(message)!r} lacks {key!r}")
    if kind(value) == "values":
        return values(value)
    return _value_from_pmt(value)


def values(message) -> dict[str, object]:
    """All keys of a nested mapping."""
    keys = [pmt.symbol_to_string(pmt.car(item)) for item in _items(message)]
    return {key: get(message, key) for key in sorted(keys) if key != "type"}


def _items(message):
    items = pmt.dict_items(message)
    while pmt.is_pair(items):
        yield pmt.car(items)
        items = pmt.cdr(items)


def grants_to_pmt(grants: Sequence[Grant]):
    """s64vector of (slot, attempt, start) ..."""
    return _attempts_to_pmt(tuple(grants))


def grants(message) -> list[Grant]:
    """Attempts in a `grant`, `phase` or `ack` message, or in the dictionary of a received burst."""
    return list(_attempts(tuple(pmt.s64vector_elements(pmt.dict_ref(message, GRANTS, pmt.PMT_NIL)))))


# What is released together goes through all blocks of all nodes together, and is converted once.
@lru_cache(maxsize=64)
def _attempts_to_pmt(grants: tuple[Grant, ...]):
    flat = list(chain.from_iterable(grants))
    return pmt.init_s64vector(len(flat), flat)


@lru_cache(maxsize=64)
def _attempts(flat: tuple[int, ...]) -> tuple[Grant, ...]:
    return tuple(map(Grant, flat[::3], flat[1::3], flat[2::3]))


def ack_to_pmt(header, grants: Sequence[Grant], status: str):
    """`ack` message on a header made by ``encode("ack", run=..., epoch=..., node=...)``."""
    return _outcome(header, grants, status)


def _outcome(header, grants: Sequence[Grant], status: str):
    outcome = pmt.dict_add(header, GRANTS, grants_to_pmt(grants))
    return pmt.dict_add(outcome, STATUS, OK if status == "ok" else pmt.intern(status))


def ack(message) -> tuple[str, list[Grant], str]:
    """Node, attempts and status of an `ack` message."""
    node, status = [pmt.dict_ref(message, key, pmt.PMT_NIL) for key in (NODE, STATUS)]
    return pmt.symbol_to_string(node), grants(message), pmt.symbol_to_string(status)


def run(message) -> int | None:
    """Run that a message belongs to; None where it does not say."""
    return _integer(message, RUN)


def epoch(message) -> int | None:
    """Epoch that a message belongs to; None where it does not say."""
    return _integer(message, EPOCH)


def _integer(message, key) -> int | None:
    value = pmt.dict_ref(message, key, pmt.PMT_NIL)  # nil too where the message is no dictionary
    return pmt.to_long(value) if pmt.is_integer(value) else None


def product_to_pmt(product: Product, **fields):
    """`product` message."""
    if product.pace_samples is not None:
        fields["pace_samples"] = product.pace_samples
    return encode("product", phase=product.phase, trusted=product.trusted, reasons=product.reasons,
                  values=product.values, **fields)


def product(message) -> Product:
    """Content of a `product` message."""
    phase, values, trusted, reasons = (get(message, key) for key in ("phase", "values", "trusted", "reasons"))
    pace = get(message, "pace_samples") if pmt.dict_has_key(message, pmt.intern("pace_samples")) else None
    return Product(phase, values, trusted, reasons, pace)


@dataclass(frozen=True, slots=True)
class Burst:
    """What a node's ports received in attempts at slots: complex64 (slots, num_ports, n), n = 0 if not ok."""

    grants: list[Grant]
    samples: np.ndarray
    status: str = "ok"


def transmit_burst(tx_time, beams: Sequence[int], slots: Sequence[int], vector, shift: int = 0):
    """Burst PDU to send: every key becomes a tag on its first sample. `vector` is a c32vector, port-major.

    `shift` is by how many samples the node's device time is ahead of network time; left out where it is 0.
    """
    meta = pmt.dict_add(pmt.make_dict(), TX_TIME, tx_time)
    meta = pmt.dict_add(meta, BEAM, _per_slot(beams))
    if shift:
        meta = pmt.dict_add(meta, SHIFT, pmt.from_long(shift))
    return pmt.cons(pmt.dict_add(meta, SLOT, _per_slot(slots)), vector)


def _per_slot(numbers: Sequence[int]):
    return pmt.from_long(numbers[0]) if len(numbers) == 1 else pmt.init_s32vector(len(numbers), numbers)


def per_slot(value) -> list[int]:
    """Entries of a burst's `beam` or `slot`, one for each of its slots."""
    return [pmt.to_long(value)] if pmt.is_integer(value) else pmt.s32vector_elements(value)


def burst_header(node: str, num_ports: int):
    """Keys of a received burst that are the same in all bursts of a node."""
    header = pmt.dict_add(pmt.make_dict(), NODE, pmt.intern(node))
    return pmt.dict_add(header, NUM_PORTS, pmt.from_long(num_ports))


def received_burst(header, grants: Sequence[Grant], samples: np.ndarray | None, status: str = "ok"):
    """Received burst PDU on a `burst_header`; None for slots without usable samples."""
    return pmt.cons(_outcome(header, grants, status), EMPTY_BURST if samples is None else vector_to_pmt(samples))


def burst_head(message) -> tuple[list[Grant], str]:
    """Attempts and status of a received burst, without its samples."""
    meta = pmt.car(message)
    return grants(meta), pmt.symbol_to_string(pmt.dict_ref(meta, STATUS, OK))


def burst(message) -> Burst:
    """Content of a received burst PDU; ValueError if it is none."""
    if not (pmt.is_pair(message) and pmt.is_c32vector(pmt.cdr(message))):
        raise ValueError("message is no burst: must be a pair of a dictionary and a c32vector")
    attempts, status = burst_head(message)
    rows = len(attempts), pmt.to_long(pmt.dict_ref(pmt.car(message), NUM_PORTS, pmt.PMT_NIL))
    samples = vector_from_pmt(pmt.cdr(message))
    return Burst(attempts, samples.reshape(*rows, samples.size // math.prod(rows)), status)

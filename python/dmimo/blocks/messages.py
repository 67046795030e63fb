# SPDX-License-Identifier: GPL-3.0-or-later
"""The message formats between blocks, encoded and decoded here only.

Control (scheduler to nodes and collectors) and status (back) are PMT dictionaries with a `type`:

======== =================================================== ==========================================================
type     keys                                                meaning
======== =================================================== ==========================================================
begin    run, epoch, hash                                    hold this schedule and answer `ready`
grant    run, epoch, grants                                  attempts at slots: s64vector (slot, attempt, start) ...
query    run                                                 answer `alive`
phase    run, phase, grants                                  the phase is complete: publish its results
product  run, phase, trusted, reasons, values                what a phase produced: answer `taken`
end      run, error                                          the run is over; error is empty where it succeeded
ready    node, hash
ack      node, slot, attempt, status                         status: ok, or what went wrong
taken    node, phase
alive    node
results  node, phase, values                                 from a node to the collectors
======== =================================================== ==========================================================

A burst is a PDU ``(dict . c32vector)`` with samples port-major and the keys `slot`, `attempt`, `start`, `node`,
`purpose`, `num_ports`; received bursts add `status`, bursts to send add `beam` and are empty for silence.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pmt

from ..protocols.slots import Grant, Product

TYPE = pmt.intern("type")
NODE = pmt.intern("node")
SLOT = pmt.intern("slot")
ATTEMPT = pmt.intern("attempt")
START = pmt.intern("start")
STATUS = pmt.intern("status")
BEAM = pmt.intern("beam")
NUM_PORTS = pmt.intern("num_ports")
PURPOSE = pmt.intern("purpose")
GRANTS = pmt.intern("grants")
SYSTEM = pmt.intern("system")
DONE = pmt.cons(pmt.intern("done"), pmt.from_long(1))  # to a block's own system port: it has finished
EMPTY_BURST = pmt.init_c32vector(0, [])

# Serialised uniform vectors: tag, element type, count, padding length, one padding byte, big-endian data. This way
# NumPy converts in one go; pmt's own accessors go through Python lists.
_HEADER = struct.Struct(">BBIBB")
_UNIFORM = 10
_KINDS = {"c8": (10, ">f4"), "c16": (11, ">f8"), "f4": (8, ">f4"), "f8": (9, ">f8"), "i8": (7, ">i8")}
_DTYPES = {code: (np.dtype(kind), big) for kind, (code, big) in _KINDS.items()}


def vector_to_pmt(array: np.ndarray):
    """Uniform vector of a flattened complex64/128, float32/64 or int64 array; exact to the bit."""
    kind = array.dtype.kind + str(array.dtype.itemsize)
    if kind not in _KINDS:
        raise ValueError(f"dtype = {array.dtype}: must be one of {sorted(_KINDS)}")
    code, big = _KINDS[kind]
    plain = np.ascontiguousarray(array).reshape(-1).view(big[1:])
    return pmt.deserialize_str(_HEADER.pack(_UNIFORM, code, array.size, 1, 0) + plain.astype(big).tobytes())


def vector_from_pmt(vector) -> np.ndarray:
    """Flat array of a uniform vector made by `vector_to_pmt`."""
    data = pmt.serialize_str(vector)
    _, code, _, _, _ = _HEADER.unpack_from(data)
    if data[0] != _UNIFORM or code not in _DTYPES:
        raise ValueError("message holds no uniform vector of a known type")
    dtype, big = _DTYPES[code]
    return np.frombuffer(data, big, offset=_HEADER.size).astype(big[1:]).view(dtype)


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
    if not pmt.is_dict(message) or pmt.is_null(message):
        return ""
    value = pmt.dict_ref(message, TYPE, pmt.PMT_NIL)
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
    flat = [number for grant in grants for number in (grant.slot, grant.attempt, grant.start)]
    return pmt.init_s64vector(len(flat), flat)


def grants(message) -> list[Grant]:
    """Attempts in a `grant` or `phase` message."""
    flat = pmt.s64vector_elements(pmt.dict_ref(message, GRANTS, pmt.PMT_NIL))
    return [Grant(*flat[k : k + 3]) for k in range(0, len(flat), 3)]


def product_to_pmt(product: Product, **fields):
    """`product` message."""
    return encode("product", phase=product.phase, trusted=product.trusted, reasons=product.reasons,
                  values=product.values, **fields)


def product(message) -> Product:
    """Content of a `product` message."""
    return Product(get(message, "phase"), get(message, "values"), get(message, "trusted"), tuple(get(message, "reasons")))


@dataclass(frozen=True, slots=True)
class Burst:
    """Samples of one attempt at a slot; `samples` is complex64 (num_ports, n), with n = 0 for silence."""

    grant: Grant
    samples: np.ndarray
    status: str = "ok"
    beam: int = 0


def burst_header(node: str, num_ports: int):
    """Keys of a burst that are the same in all bursts of a node."""
    header = pmt.dict_add(pmt.make_dict(), NODE, pmt.intern(node))
    return pmt.dict_add(header, NUM_PORTS, pmt.from_long(num_ports))


def burst_to_pmt(header, grant: Grant, samples, *, beam: int | None = None, status: str | None = None,
                 purpose: str | None = None):
    """Burst PDU on a `burst_header`; `samples` is an array or an already encoded c32vector."""
    meta = pmt.dict_add(header, SLOT, pmt.from_long(grant.slot))
    meta = pmt.dict_add(meta, ATTEMPT, pmt.from_long(grant.attempt))
    meta = pmt.dict_add(meta, START, pmt.from_long(grant.start))
    if beam is not None:
        meta = pmt.dict_add(meta, BEAM, pmt.from_long(beam))
    if status is not None:
        meta = pmt.dict_add(meta, STATUS, pmt.intern(status))
    if purpose is not None:
        meta = pmt.dict_add(meta, PURPOSE, pmt.intern(purpose))
    return pmt.cons(meta, vector_to_pmt(samples) if isinstance(samples, np.ndarray) else samples)


def burst(message) -> Burst:
    """Content of a burst PDU; ValueError if it is none."""
    if not (pmt.is_pair(message) and pmt.is_c32vector(pmt.cdr(message))):
        raise ValueError("message is no burst: must be a pair of a dictionary and a c32vector")
    meta = pmt.car(message)
    grant = Grant(*(pmt.to_long(pmt.dict_ref(meta, key, pmt.PMT_NIL)) for key in (SLOT, ATTEMPT, START)))
    num_ports = pmt.to_long(pmt.dict_ref(meta, NUM_PORTS, pmt.PMT_NIL))
    vector = pmt.cdr(message)
    samples = vector_from_pmt(vector) if pmt.length(vector) else np.zeros(0, np.complex64)
    status = pmt.dict_ref(meta, STATUS, pmt.PMT_NIL)
    beam = pmt.dict_ref(meta, BEAM, pmt.PMT_NIL)
    return Burst(grant, samples.reshape(num_ports, -1), "ok" if pmt.is_null(status) else pmt.symbol_to_string(status),
                 0 if pmt.is_null(beam) else pmt.to_long(beam))

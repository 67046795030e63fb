# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pmt
import pytest
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant, Product


def over_the_wire(message):
    """What a remote host makes of a message."""
    return pmt.deserialize_str(pmt.serialize_str(message))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.float32, np.float64, np.int64])
def test_arrays_survive_bit_exact_with_shape_and_type(dtype):
    rng = np.random.default_rng(1)
    array = rng.normal(size=(2, 3, 5)) * 1e3
    if np.dtype(dtype).kind == "c":
        array = array + 1j * rng.normal(size=array.shape)
    array = array.astype(dtype)
    got = messages.get(over_the_wire(messages.encode("x", array=array)), "array")
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("array", [np.zeros((0, 4)), np.array([np.nan, np.inf, -0.0]),
                                   np.arange(6).reshape(2, 3)[:, ::2]])
def test_empty_odd_and_strided_arrays_survive(array):
    got = messages.get(over_the_wire(messages.encode("x", array=array)), "array")
    assert got.shape == array.shape
    np.testing.assert_array_equal(got, array)


def test_our_vectors_are_those_of_pmt():
    values = [1 + 2j, -3.5j]
    assert pmt.equal(messages.vector_to_pmt(np.array(values, np.complex64)), pmt.init_c32vector(2, values))
    np.testing.assert_array_equal(messages.vector_from_pmt(pmt.init_f64vector(2, [0.1, 0.2])), [0.1, 0.2])


def test_products_survive():
    product = Product("sweep", {"c": np.array([1, 2j]), "reference_time": 2**40, "note": "x", "good": False, "f": 0.5},
                      False, ("port a is dead", "b"))
    got = messages.product(over_the_wire(messages.product_to_pmt(product, run=3, epoch=1)))
    np.testing.assert_array_equal(got.values["c"], product.values["c"])
    assert got.values["reference_time"] == 2**40
    assert got.values["note"] == "x"
    assert got.values["good"] is False
    assert (got.phase, got.trusted, got.reasons) == ("sweep", False, product.reasons)
    assert messages.product(messages.product_to_pmt(Product("p", {}))).reasons == ()


def test_grants_and_acknowledgements_survive():
    grants = [Grant(0, 0, 5), Grant(2**40, 3, 2**60)]
    message = over_the_wire(messages.encode("grant", grants=messages.grants_to_pmt(grants), run=1, epoch=2))
    assert messages.kind(message) == "grant"
    assert messages.grants(message) == grants
    header = messages.encode("ack", run=7, epoch=0, node="ap1")
    ack = over_the_wire(messages.ack_to_pmt(header, grants, "lost"))
    assert messages.run(ack) == 7
    assert messages.ack(ack) == ("ap1", grants, "lost")


@pytest.mark.parametrize("grants", [[Grant(4, 1, 999)], [Grant(4, 1, 999), Grant(7, 0, 1002)]])
def test_received_bursts_survive(grants):
    samples = (np.arange(6 * len(grants)) + 1j).reshape(-1, 2, 3).astype(np.complex64)
    header = messages.burst_header("ap1", 2)
    message = over_the_wire(messages.received_burst(header, grants, samples))
    got = messages.burst(message)
    np.testing.assert_array_equal(got.samples, samples)
    assert (got.grants, got.status) == messages.burst_head(message) == (grants, "ok")
    lost = messages.burst(messages.received_burst(header, grants, None, "lost"))
    assert (lost.samples.shape, lost.status) == ((len(grants), 2, 0), "lost")


@pytest.mark.parametrize("numbers", [[5], [5, 2**30, 0]])
def test_keys_per_slot_are_integers_for_one_slot_and_vectors_for_several(numbers):
    message = messages.transmit_burst(pmt.PMT_T, numbers, numbers, messages.EMPTY_BURST)
    meta = pmt.to_python(pmt.car(over_the_wire(message)))
    for key in ("beam", "slot"):
        np.testing.assert_array_equal(meta[key], numbers if len(numbers) > 1 else numbers[0])
        assert messages.per_slot(pmt.dict_ref(pmt.car(message), pmt.intern(key), pmt.PMT_NIL)) == numbers


@pytest.mark.parametrize("message", [pmt.PMT_NIL, pmt.intern("x"), pmt.cons(pmt.make_dict(), pmt.intern("x"))])
def test_what_is_no_burst_is_refused(message):
    with pytest.raises(ValueError, match="no burst"):
        messages.burst(message)


def test_missing_keys_and_unknown_types_are_named():
    with pytest.raises(ValueError, match="'ack' lacks 'slot'"):
        messages.get(messages.encode("ack"), "slot")
    with pytest.raises(ValueError, match="no message form"):
        messages.encode("x", value=object())
    with pytest.raises(ValueError, match="dtype = int32"):
        messages.vector_to_pmt(np.zeros(2, np.int32))
    assert messages.kind(pmt.intern("ack")) == ""
    assert messages.kind(pmt.PMT_NIL) == ""

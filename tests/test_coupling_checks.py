# SPDX-License-Identifier: GPL-3.0-or-later
"""Testbed files with arrays, amplifiers and mutual coupling: what they mean, and that mistakes are named."""

import json

import numpy as np
import pytest
import yaml
from gnuradio.dmimo import coupling_checks, testbed
from gnuradio.dmimo.core import predistortion
from gnuradio.dmimo.core.predistortion_statistics import PROBE_TERMS
from gnuradio.dmimo.protocols import mutual_coupling

WHOLE = """\
version: 1
node_defaults:
  hardware:
    amplifier: {kind: gan, back_off_db: 9, saturation: 0.9, drive_std_db: 0.5, spread: 0.1, memory: [[0.1, -0.2]]}
nodes:
  - {name: ap1, num_ports: 6, array: {rows: 2, columns: 3, spacing_wavelengths: 0.6}}
  - {name: ue1, kind: ue, hardware: {amplifier: null}}
propagation:
  coupling:
    {kind: log_distance, gain_db: -20, slope_db_per_wavelength: 2, exponent: 3, reference_wavelengths: 0.4,
     perturbation_db: -25, nonreciprocity_db: -60}
slots: {slot_samples: 1264, pilot_samples: 512}
mutual_coupling:
  {num_pilots: 100, design: uniform, peak_db: 9, order: 5, memory_depth: 1, repeats: 2, linear_repeats: 3,
   hold_samples: 8, guard_samples: 2, predistort: false, calibration: ratio, full_scale: 4}
verification: {}
linearity: {repeats: 4, modulation: qpsk, power_db: -1, guard_subcarriers: 6}
"""
ENTER = "  - {name: ap2, num_ports: 2}\n"
USRP = "usrp: {tx_amplitude: 0.5}\n"


def failure(text: str) -> str:
    with pytest.raises(testbed.TestbedError) as caught:
        testbed.parse(text, source="bed.yml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(*changes: str) -> str:
    """WHOLE with "old -> new" carried out."""
    text = WHOLE
    for change in changes:
        old, new = change.split(" -> ")
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_every_key_reaches_its_field():
    bed = testbed.parse(WHOLE)
    ap1, ue1 = bed.nodes
    assert ap1.array == testbed.Array(2, 3, 0.6)
    assert ap1.hardware.amplifier == testbed.Amplifier("gan", (0.0, 0.0), 9.0, 0.9, 0.5, 0.1, ((0.1, -0.2),))
    assert ue1.array is None
    assert ue1.hardware.amplifier is None
    assert bed.propagation.coupling == testbed.Coupling("log_distance", -20.0, 2.0, 3.0, 0.4, -25.0, -60.0)
    assert bed.propagation.couples_ports
    assert bed.mutual_coupling == testbed.MutualCoupling(
        100, "uniform", 9.0, 5, 1, 2, 3, 8, 2, False, "ratio", 4.0)
    assert bed.linearity == testbed.Linearity("ue1", 4, "qpsk", -1.0, 6)
    assert isinstance(bed.mutual_coupling.full_scale, float)
    assert testbed.port_names(bed) == tuple(f"ap1:{port}" for port in range(6))


def test_written_out_testbed_parses_to_itself():
    bed = testbed.parse(WHOLE)
    plain = testbed.to_dict(bed)
    assert testbed.parse(yaml.safe_dump(plain)) == bed
    assert testbed.parse(json.dumps(plain)) == bed


def test_linearity_is_measured_where_verification_is():
    text = changed("propagation: -> " + "  - {name: ue2, kind: ue, hardware: {amplifier: null}}\npropagation:",
                   "verification: {} -> verification: {ue: ue2}")
    assert testbed.parse(text).linearity.ue == "ue2"


def test_file_without_these_sections_has_none_of_them():
    bed = testbed.parse("version: 1\nnodes: [{name: a}, {name: b}]\n")
    assert (bed.mutual_coupling, bed.linearity, bed.propagation.coupling, bed.nodes[0].array) == (None,) * 4
    assert not bed.propagation.couples_ports
    alone = testbed.parse("version: 1\nnodes: [{name: a, num_ports: 2}]\npropagation: {coupling_db: -20}\n"
                          "mutual_coupling: {num_pilots: 40}\n")
    assert alone.mutual_coupling == testbed.MutualCoupling(num_pilots=40)


def test_an_array_of_a_hundred_ports_needs_no_slot_in_which_all_of_them_sound():
    text = changed("num_ports: 6 -> num_ports: 100", "rows: 2, columns: 3 -> rows: 4, columns: 25")
    assert testbed.parse(text).slots.slot_samples == 1264
    sounding = text.replace("mutual_coupling:\n", "beamsync: {}\nmutual_coupling:\n")
    sounding = sounding.replace("nodes:\n", "nodes:\n" + ENTER)
    assert "value 1264: must be at least 54448 = lead_samples + 100 ports of ap1" in failure(sounding)
    assert "num_ports: value 257: must be at most 256" in failure(text.replace("num_ports: 100", "num_ports: 257"))


MISTAKES = [
    # changes, line of the error, what the message must say
    (["num_ports: 6 -> num_ports: 5"], 6, "nodes[0].array: 2 * 3 places: must be num_ports = 5 of node ap1"),
    (["columns: 3,  -> "], 6, "nodes[0].array: required key missing: columns"),
    (["  hardware:\n -> "+ "  array: {rows: 1, columns: 6}\n  hardware:\n"], 3, "node_defaults.array: 1 * 6 places: m"),
    (["kind: gan -> kind: gaas"], 4, 'node_defaults.hardware.amplifier.kind: value "gaas": allowed: third_order, gan'),
    (["back_off_db: 9 -> compression: [-0.1, 0]"], 4, "amplifier.compression: value [-0.1, 0.0]: only with kind: thir"),
    (["[[0.1, -0.2]] -> [[0.5, 0.5], [-1.5, -0.5]]"], 4, "amplifier.memory: 1 and these gains must not add up to zero"),
    (["[[0.1, -0.2]] -> [0.1, -0.2]"], 4, "amplifier.memory[0]: value 0.1: must be a list"),
    (["saturation: 0.9 -> saturation: 0"], 4, "amplifier.saturation: value 0: must be above 0"),
    (["  coupling:\n -> "+ "  coupling_db: -20\n  coupling:\n"], 10, "propagation.coupling: not together with couplin"),
    (["log_distance -> log"], 10, 'propagation.coupling.kind: value "log": allowed: linear, log_distance'),
    (["exponent: 3 -> exponent: -3"], 10, "propagation.coupling.exponent: value -3: must be at least 0"),
    (["order: 5 -> order: 4"], 14, "mutual_coupling.order: value 4: allowed: 3, 5, 7, 9, 11"),
    (["order: 5 -> order: 13"], 14, "mutual_coupling.order: value 13: allowed: 3, 5, 7, 9, 11"),
    (["calibration: ratio -> calibration: argos"], 15, "calibration: value \"argos\": allowed: all_pairs, ratio, sing"),
    (["memory_depth: 1 -> memory_depth: 2"], 15, "mutual_coupling.hold_samples: value 8: must be 1 with memory_depth "),
    (["guard_samples: 2 -> guard_samples: 4"], 15, "guard_samples: value 4: twice that must be below hold_samples = 8"),
    (["num_pilots: 100 -> num_pilots: 9"], 14, "num_pilots: value 9: must be at least 10 for order = 5, memory_depth "),
    (["uniform -> two_level"], 14, "design: value two_level: two amplitudes do not show order 5; allowed: data_like, "),
    (["uniform -> data_like", "peak_db: 9 -> peak_db: 19"], 14, "peak_db: value 19: must be at most 18 for order = 5"),
    (["uniform -> data_like", "peak_db: 9 -> peak_db: -1"], 14, "peak_db: value -1: must be at least 0"),
    (["calibration: ratio -> calibration: single_stage"], 15, "calibration: value single_stage: only with predistort:"),
    (["slot_samples: 1264 -> slot_samples: 879"], 12, "slots.slot_samples: value 879: must be at least 880 = lead_"
     "samples + prefix_samples + num_pilots * hold_samples + prefix_samples for mutual_coupling"),
    (["hold_samples: 8, guard_samples: 2 -> hold_samples: 1", "memory_depth: 1 -> memory_depth: 4",
      "num_pilots: 100 -> num_pilots: 1182"], 12, "must be at least 1265 = lead_samples + prefix_samples + num_pilots "
     "* hold_samples + memory_depth - 1 + prefix_samples for mutual_coupling"),
    (["slots: { -> slots: {prefix_samples: 11, "], 12, "slots.prefix_samples: value 11: must be at least 12 with mutu"),
    (["pilot_samples: 512 -> pilot_samples: 300"], 12, "value 300: must be at least 301 for the adjacent channels of "),
    (["linearity: { -> linearity: {ue: ap1, "], 17, 'linearity.ue: value "ap1": must be that of verification, ue1'),
    (["verification: {}\n -> "], 16, "linearity: needs a section verification, whose uplink the weights come from"),
    (["repeats: 4 -> repeats: 1"], 17, "linearity.repeats: value 1: must be at least 2"),
    (["  - {name: ue1, kind: ue, hardware: {amplifier: null}}\n -> "], 15, "verification: the testbed has no user ter"),
    (["num_ports: 6, array: {rows: 2, columns: 3, spacing_wavelengths: 0.6} -> num_ports: 1"], 6, "nodes[0].num_po"),
    (["linearity: -> beamsync: {internal_calibration: none}\nlinearity:"], 17, "beamsync: not with a single access po"),
    (["linearity: -> bidirectional: {}\nlinearity:"], 17, "bidirectional: not with a single access point; required: a"),
    (["name: ap1, -> name: ap1, kind: ue, "], 5, "nodes: 0 access points; required: at least 1 node of kind ap"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "line", "message"), MISTAKES)
def test_mistake_is_named_with_line_key_value_and_what_is_allowed(changes, line, message):
    found = failure(changed(*changes))
    assert found.startswith(f"bed.yml:{line}: "), found
    assert message in found


def test_values_at_the_limits_are_accepted():
    for changes in (["slot_samples: 1264 -> slot_samples: 880", "pilot_samples: 512 -> pilot_samples: 301"],
                    ["hold_samples: 8, guard_samples: 2 -> hold_samples: 1", "memory_depth: 1 -> memory_depth: 4",
                     "num_pilots: 100 -> num_pilots: 1181"],
                    ["hold_samples: 8, guard_samples: 2 -> hold_samples: 5, guard_samples: 2"],
                    ["num_pilots: 100 -> num_pilots: 10"], ["uniform -> two_level", "order: 5 -> order: 3"],
                    ["uniform -> data_like", "peak_db: 9 -> peak_db: 18"],
                    ["calibration: ratio -> calibration: single_stage", "predistort: false -> predistort: true"],
                    ["slots: { -> slots: {prefix_samples: 12, "], ["num_ports: 6 -> num_ports: 6, kind: ap"]):
        testbed.parse(changed(*changes))


def test_simulated_ports_that_do_not_hear_each_other_cannot_be_linearised():
    start, end = WHOLE.index("propagation:"), WHOLE.index("slots:")
    text = WHOLE[:start] + WHOLE[end:]
    assert "bed.yml:9: mutual_coupling: the ports of a node must hear each other: propagation.c" in failure(text)
    testbed.parse(text.replace("slots:", "propagation: {coupling_db: -30}\nslots:"))
    testbed.parse(text.replace("peak_db: 9", "peak_db: 6") + USRP + "frontend: usrp\n")  # radios hear what they hear


def test_linearity_needs_mutual_coupling_and_two_access_points_without_it():
    start, end = WHOLE.index("mutual_coupling:"), WHOLE.index("linearity:")
    text = (WHOLE[:start] + WHOLE[end:]).replace("slot_samples: 1264", "slot_samples: 4096")
    assert ("bed.yml:5: nodes: 1 access points; required: at least 2 nodes of kind ap, or a section mutual_coupling, "
            "with which one calibrates itself") in failure(text)
    two = text.replace("nodes:\n", "nodes:\n" + ENTER)
    assert "bed.yml:14: linearity: needs a section mutual_coupling" in failure(two)


def test_pilots_of_radios_are_held_and_guarded():
    text = changed("peak_db: 9 -> peak_db: 6") + USRP + "frontend: usrp\n"
    assert "mutual_coupling.guard_samples: value 0: must be at least 1 with frontend: usrp" in failure(
        text.replace("guard_samples: 2", "guard_samples: 0"))
    testbed.parse(text.replace("guard_samples: 2", "guard_samples: 1"))
    # Memory shows in pilots that are not held.
    testbed.parse(text.replace("hold_samples: 8", "hold_samples: 1").replace("guard_samples: 2", "guard_samples: 0")
                  .replace("memory_depth: 1", "memory_depth: 2"))


def test_largest_pilot_of_a_radio_fits_its_converter():
    text = changed("peak_db: 9 -> peak_db: 6.1") + USRP + "frontend: usrp\n"
    found = failure(text)
    assert found.startswith("bed.yml:14: mutual_coupling.peak_db: value 6.1: the largest pilot exceeds")
    assert "at most 6.02 with usrp.tx_amplitude = 0.5" in found
    testbed.parse(text.replace("6.1", "6.02"))
    testbed.parse(text.replace("frontend: usrp", "frontend: simulated"))
    unity = text.replace("0.5}", "1.0}").replace("peak_db: 6.1", "peak_db: 0")
    testbed.parse(unity)


def test_internal_calibration_of_a_synchronisation_takes_either_coupling():
    both = changed("nodes:\n -> " + "nodes:\n" + ENTER, "slot_samples: 1264 -> slot_samples: 4096")
    testbed.parse(both + "beamsync: {}\n")
    start, end = both.index("propagation:"), both.index("slots:")
    alone = both[:start] + both[end:both.index("mutual_coupling:")] + "beamsync: {}\n"
    assert "propagation.coupling or propagation.coupling_db must be set; allowed: none" in failure(alone)
    testbed.parse(alone + "propagation: {coupling_db: -10}\n")
    testbed.parse(alone + "propagation: {coupling: {}}\n")


@pytest.mark.parametrize("peak", ["least", "most"])
@pytest.mark.parametrize("order", [3, 5, 7, 9, 11])
def test_pilots_like_data_within_the_limits_identify_amplifiers(order, peak):
    peak_db = 0.0 if peak == "least" else coupling_checks.MAX_DATA_PEAK_DB[order]
    for depth, per_term in ((1, 2), (2, 3), (4, 3)):
        least = per_term * ((order + 1) // 2 + coupling_checks.PROBE_TERMS) * depth
        for num in (least, 100, 1000):
            pilots = predistortion.design_pilots(num + depth - 1, "data_like", peak=10 ** (peak_db / 20),
                                                 backoff_db=peak_db, rng=np.random.default_rng(num))
            y = np.ones((3, 3, 1)) * pilots
            statistics = predistortion.pilot_statistics(y, pilots, order=order, memory_depth=depth)
            found = predistortion.identify_amplifiers(statistics)
            assert np.abs(found.coefficients.reshape(3, -1)[:, 1:]).max() < 1e-3


def test_limits_of_the_checks_are_those_of_the_estimator_and_the_protocol():
    assert coupling_checks.PROBE_TERMS == PROBE_TERMS
    assert (coupling_checks.PILOTS_PER_TERM, coupling_checks.PILOTS_PER_TERM_WITH_MEMORY) == (2, 3)
    assert coupling_checks.LAGS == mutual_coupling.LAGS

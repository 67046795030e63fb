# SPDX-License-Identifier: GPL-3.0-or-later
"""Testbed files: what they mean, and that every mistake in one is named on one line."""

import dataclasses
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from gnuradio.dmimo import testbed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SCHEMA = json.loads(Path(testbed.__file__).with_name("testbed.schema.json").read_text(encoding="utf-8"))
SMALL = """\
version: 1
nodes:
  - name: ap1
  - name: ap2
  - {name: ue1, kind: ue}
"""
WHOLE = """\
version: 1
name: three panels
seed: 7
frontend: simulated
samp_rate: 1e6
center_freq: 3.5E+9
node_defaults:
  panel: {num_antennas: 32, beams: [0, 11, 22]}
  oscillator: {linewidth_hz: 10}
  hardware: {adc: {bits: 8, full_scale: 4.0}, amplifier: {compression: [-0.01, 0.02]}}
nodes:
  - {name: ap1, num_ports: 2, tx_gain_db: 10.5, position_m: [0, 0, 3]}
  - {name: ap2, oscillator: {cfo_hz: -50}, clock: {offset_samples: 1.5, follow_cfo: true}}
  - name: ue1
    kind: ue
    panel: {num_antennas: 1, beams: [0]}
    hardware: {adc: null, gain_std_db: 1}
propagation:
  kind: geometric
  path_gain_db: -3
  pair_gain_db: {ap2-ap1: -10.0}
  blocked_pairs: [[ue1, ap2]]
noise: {snr_db: null}
faults: [{kind: nan, node: ap1, slot: 17, port: 1}]
slots: {slot_samples: 1024}
beam_sweep: {beams: 4, passes: 2}
calibration: {method: tls, reference: ap2, delay: false}
verification: {repeats: 3, cooperating: [1, 3]}
"""


def failure(text: str) -> str:
    """Return the message of the error that `text` must raise; check that it is one line."""
    with pytest.raises(testbed.TestbedError) as caught:
        testbed.parse(text, source="bed.yml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_of_the_file_reaches_its_field():
    bed = testbed.parse(WHOLE)
    ap1, ap2, ue1 = bed.nodes
    assert (bed.name, bed.seed, bed.samp_rate, bed.center_freq) == ("three panels", 7, 1e6, 3.5e9)
    assert isinstance(bed.samp_rate, float)
    assert (ap1.num_ports, ap1.tx_gain_db, ap1.position_m) == (2, 10.5, (0.0, 0.0, 3.0))
    assert ap1.panel == ap2.panel == testbed.Panel(32, (0, 11, 22))
    assert ap2.oscillator == testbed.Oscillator(cfo_hz=-50.0, linewidth_hz=10.0)
    assert ap2.clock == testbed.Clock(offset_samples=1.5, follow_cfo=True)
    assert ap1.hardware.amplifier == testbed.Amplifier(compression=(-0.01, 0.02))
    assert ap1.hardware.adc == testbed.Adc(8, 4.0)
    assert ue1.hardware.adc is None
    assert ue1.hardware.amplifier is not None
    assert ue1.hardware.gain_std_db == 1.0
    assert ue1.panel == testbed.Panel()
    assert bed.noise.snr_db is None
    assert bed.faults == (testbed.Fault("nan", "ap1", 17, 1),)
    assert bed.slots == testbed.Slots(slot_samples=1024)
    assert bed.beam_sweep == testbed.BeamSweep(4, 2)
    assert bed.calibration == testbed.CalibrationSettings("tls", "ap2", delay=False)
    assert bed.verification == testbed.Verification("ue1", repeats=3, cooperating=(1, 3))
    assert (bed.aps, bed.ues, bed.node("ap2")) == ((ap1, ap2), (ue1,), ap2)
    assert testbed.port_names(bed) == ("ap1:0", "ap1:1", "ap2:0")


def test_open_names_are_the_first_access_point_and_user():
    bed = testbed.parse(SMALL)
    assert bed.calibration.reference == "ap1"
    assert bed.verification is None
    assert testbed.parse(SMALL + "verification: {}\n").verification.ue == "ue1"
    with pytest.raises(KeyError):
        bed.node("ap9")


BIDIRECTIONAL = SMALL + """\
  - {name: ue2, kind: ue}
bidirectional:
  {calibrating: [ue2], estimator: ml_tls, form: phase, fade_limit_db: 12, max_delay_s: 1e-6, max_cfo_hz: 300,
   pattern_s: 5e-3, patterns: 2, calibrate: on_demand, budget_deg: 3, tracking: wideband, linewidth_hz: 1,
   drift_hz: 2, drift_period_s: 4, uplink: false, keep_csi: true}
"""


def test_bidirectional_section_reaches_its_fields_and_leaves_all_terminals_to_the_default():
    bed = testbed.parse(BIDIRECTIONAL)
    assert bed.bidirectional == testbed.Bidirectional(
        ("ue2",), "ml_tls", "phase", 12.0, 1e-6, 300.0, 5e-3, 2, "on_demand", 3.0, "wideband", 1.0, 2.0, 4.0, False,
        True)
    everyone = BIDIRECTIONAL.replace("calibrating: [ue2], ", "")
    assert testbed.parse(everyone).bidirectional.calibrating == ("ue1", "ue2")
    assert testbed.parse(SMALL + "bidirectional: {}\n").bidirectional == testbed.Bidirectional(("ue1",))
    assert testbed.parse(SMALL).bidirectional is None
    # Verification and downlink to several terminals follow it as they follow a sweep.
    both = testbed.parse(BIDIRECTIONAL + "verification: {}\nmultiuser: {}\n")
    assert (both.verification.ue, both.multiuser.ues) == ("ue1", ("ue1", "ue2"))


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("[ue2]", "[ue2, ue3]", 8, 'bidirectional.calibrating[1]: value "ue3": no such node; did you mean ue2? allow'),
        ("[ue2]", "[ap1]", 8, 'bidirectional.calibrating[0]: value "ap1": no such node; allowed: ue1, ue2'),
        ("[ue2]", "[ue2, ue2]", 8, "bidirectional.calibrating: value [\"ue2\", \"ue2\"]: entries must be unique"),
        ("ml_tls", "ml", 8, 'bidirectional.estimator: value "ml": allowed: joint_ml, ml_tls'),
        ("on_demand", "never", 9, 'bidirectional.calibrate: value "never": allowed: always, on_demand'),
        ("patterns: 2", "patterns: 0", 9, "bidirectional.patterns: value 0: must be at least 1"),
        ("max_cfo_hz: 300", "max_cfo_hz: 0", 8, "bidirectional.max_cfo_hz: value 0: must be above 0"),
        ("bidirectional:\n", "beamsync: {}\nbidirectional:\n", 8, "bidirectional: not together with beamsync"),
    ],
)
def test_mistake_in_the_bidirectional_section_is_named(old, new, line, message):
    assert old in BIDIRECTIONAL
    found = failure(BIDIRECTIONAL.replace(old, new, 1))
    assert found.startswith(f"bed.yml:{line}: "), found
    assert message in found


def test_beamsync_has_no_place_for_a_receive_delay():
    text = SMALL + "beamsync: {}\nslots: {receive_delay_samples: 40, slot_samples: 512}\n"
    assert "bed.yml:7: slots.receive_delay_samples: value 40: must be 0 with beamsync" in failure(text)


def test_calibration_with_user_terminals_needs_one():
    alone = SMALL.replace("  - {name: ue1, kind: ue}\n", "")
    for section in ("bidirectional", "multiuser"):
        assert f"bed.yml:5: {section}: the testbed has no user terminal" in failure(alone + f"{section}: {{}}\n")


@pytest.mark.parametrize("text", [SMALL, WHOLE, BIDIRECTIONAL])
def test_written_out_testbed_parses_to_itself(text):
    bed = testbed.parse(text)
    plain = testbed.to_dict(bed)
    assert testbed.parse(yaml.safe_dump(plain)) == bed
    assert testbed.parse(json.dumps(plain)) == bed


def test_defaults_of_the_schema_are_those_of_the_dataclasses():
    sections = {name: SCHEMA["$defs"][name] for name in ("panel", "hardware", "oscillator", "clock", "fault", "slots")}
    sections |= {name: SCHEMA["$defs"][name] for name in ("propagation", "noise", "beam_sweep", "verification", "node")}
    sections |= {name: SCHEMA["$defs"][name] for name in ("multiuser", "bidirectional")}
    sections |= {name: SCHEMA["$defs"][name] for name in ("node_radio", "radio", "usrp", "hosts", "array")}
    sections |= {name: SCHEMA["$defs"][name] for name in ("mutual_coupling", "linearity")}
    sections |= {name: sections["hardware"]["properties"][name] for name in ("adc", "amplifier")}
    sections |= {"coupling": SCHEMA["$defs"]["propagation"]["properties"]["coupling"]}
    sections |= {"testbed": SCHEMA, "calibration_settings": SCHEMA["$defs"]["calibration"]}
    for name, section in sections.items():
        kind = getattr(testbed, name.title().replace("_", ""))
        required = dict.fromkeys(set(section.get("required", ())) - {"version"}, ())
        made = dataclasses.asdict(kind(**required))
        assert set(section["properties"]) - {"version", "node_defaults"} == set(made)
        defaults = {key: entry["default"] for key, entry in section["properties"].items() if "default" in entry}
        assert defaults
        assert defaults == json.loads(json.dumps({key: made[key] for key in defaults}))
        without = set(section["properties"]) - set(defaults) - set(section.get("required", []))
        assert all("$ref" in section["properties"][key] for key in without - {"node_defaults"}), without


def test_schema_is_valid_and_complete_enough_for_an_editor():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def walk(entry):
        if "properties" in entry or "patternProperties" in entry:
            assert entry["additionalProperties"] is False
        for key, value in entry.get("properties", {}).items():
            assert "$ref" in value or len(value["description"]) > 10, key
            numeric = "number" in (kinds := value.get("type", [])) or "integer" in kinds
            assert not numeric or ({"minimum", "exclusiveMinimum"} & set(value) and "maximum" in value), key
            walk(value)

    walk(SCHEMA)
    for entry in SCHEMA["$defs"].values():
        assert entry["description"]
        walk(entry)


REPLACEMENTS = [
    # line of SMALL or WHOLE replaced, its replacement, line of the error, what the message must say
    ("version: 1", "version: 2", 1, 'version: value 2: unknown format version; allowed: 1'),
    ("seed: 7", "sede: 7", 3, "sede: unknown key; did you mean seed? allowed: version, name, seed"),
    ("seed: 7", "seed: 7.5", 3, "seed: value 7.5: must be an integer"),
    ("seed: 7", "seed: -1", 3, "seed: value -1: must be at least 0"),
    ("seed: 7", "seed: true", 3, "seed: value true: must be an integer"),
    ("seed: 7", f"seed: {'9' * 400}", 3, "seed: value inf: must be a finite number"),
    ("seed: 7", "name: again", 3, "name: duplicate key, first on line 2"),
    ("seed: 7", "? [a]\n: 1", 3, "top level: a key is not text"),
    ("seed: 7", "1: 2", 3, "top level: a key is not text"),
    ("seed: 7", "seed: !!python/object:os.system x", 3, "seed: tag tag:yaml.org,2002:python/object:os.system"),
    ("seed: 7", "seed: !!int x", 3, 'seed: value "x": must be a number'),
    ("seed: 7", "seed: &a {b: [*a]}", 3, "seed: nested too deeply"),
    ("seed: 7", "seed: *a", 3, "not valid YAML: found undefined alias"),
    ("seed: 7", "seed: [", 5, "not valid YAML: expected ',' or ']'"),
    ("seed: 7", "seed: \x07", 3, "not valid YAML: character"),
    ("seed: 7", "seed: 7\n---\na: 1", 4, "not valid YAML: but found another document"),
    ("frontend: simulated", "frontend: usrp", 4, "frontend: value usrp: needs a section usrp with the radios"),
    ("frontend: simulated", "frontend: replay", 1, "recording: required with frontend: replay"),
    ("frontend: simulated", "recording: run7", 4, 'recording: value "run7": only with frontend: replay'),
    ("frontend: simulated", "frontend: simulate", 4, 'frontend: value "simulate": did you mean simulated? allowed:'),
    ("samp_rate: 1e6", "samp_rate: 0", 5, "samp_rate: value 0: must be above 0"),
    ("samp_rate: 1e6", "samp_rate: 1e10", 5, "samp_rate: value 10000000000.0: must be at most 1000000000"),
    ("samp_rate: 1e6", "samp_rate: fast", 5, 'samp_rate: value "fast": must be a number'),
    ("samp_rate: 1e6", "samp_rate: .nan", 5, "samp_rate: value nan: must be a finite number"),
    ("samp_rate: 1e6", "samp_rate: 1e999", 5, "samp_rate: value inf: must be a finite number"),
    ("node_defaults:", "node_defaults:\n  name: x", 8, "node_defaults.name: unknown key"),
    ("[0, 11, 22]}", "[0, 11, 32]}", 8, "node_defaults.panel.beams[2]: value 32: must be below num_antennas = 32 of"),
    ("[0, 11, 22]}", "[0, 11, 11]}", 8, "node_defaults.panel.beams: value [0, 11, 11]: entries must be unique"),
    ("[0, 11, 22]}", "[]}", 8, "node_defaults.panel.beams: value []: must have at least 1 entries"),
    ("name: ap2", "name: ap1", 13, 'nodes[1].name: value "ap1": must be unique; first on line 12'),
    ("{name: ap2, ", "{", 13, "nodes[1]: required key missing: name"),
    ("name: ap2", "name: ap-2", 13, 'nodes[1].name: value "ap-2": must be a name: a letter'),
    ("name: ap2", "name: 2", 13, "nodes[1].name: value 2: must be text"),
    ("name: ap2", "name: ap2, kind: ue", 11, "nodes: 1 access points; required: at least 2 nodes of kind ap"),
    ("name: ap2", "name: ap2, kind: AP", 13, 'nodes[1].kind: value "AP": allowed: ap, ue'),
    ("[0, 0, 3]", "[0, 0]", 12, "nodes[0].position_m: value [0, 0]: must have at least 3 entries"),
    ("cfo_hz: -50", "cfo: -50", 13, "nodes[1].oscillator.cfo: unknown key; did you mean cfo_hz?"),
    ("follow_cfo: true", "follow_cfo: yes", 13, 'nodes[1].clock.follow_cfo: value "yes": must be true or false'),
    ("num_ports: 2", "num_ports: 8", 25, "value 1024: must be at least 1328 = lead_samples + 8 ports of ap1"),
    ("    panel: {", "    panel: {num_antenas: 1, ", 16, "nodes[2].panel.num_antenas: unknown key; did you mean num"),
    ("path_gain_db: -3", "cross_polarisation_db: -1", 20, "cross_polarisation_db: value -1: must be at least 0"),
    ("path_gain_db: -3", "rice_factor_db: null", 20, "propagation.rice_factor_db: value null: must be a number"),
    ("kind: geometric", "kind: null", 19, "propagation.kind: value null: allowed: rayleigh, geometric"),
    ("ap2-ap1", "ap2-ap3", 21, 'propagation.pair_gain_db.ap2-ap3: value "ap3": no such node; did you mean ap2? allo'),
    ("ap2-ap1", "ap2", 21, 'propagation.pair_gain_db.ap2: must name two nodes, as in "ap1-ap2"'),
    ("ap2-ap1", "ap2-ap2", 21, "a pair needs two different nodes"),
    ("ap2-ap1: -10.0", "ap2-ap1: 1, ap1-ap2: 1", 21, "propagation.pair_gain_db.ap1-ap2: same pair as ap2-ap1"),
    ("[[ue1, ap2]]", "[[ue1]]", 22, 'propagation.blocked_pairs[0]: value ["ue1"]: must have at least 2 entries'),
    ("[[ue1, ap2]]", "[[ue1, ap7]]", 22, 'propagation.blocked_pairs[0]: value "ap7": no such node'),
    ("snr_db: null", "snr_db: loud", 23, 'noise.snr_db: value "loud": must be a number or null'),
    ("kind: nan", "kind: fire", 24, 'faults[0].kind: value "fire": allowed: lost_slot, dead_port, nan, silent, lost'),
    ("kind: nan, ", "", 24, "faults[0]: required key missing: kind"),
    ("node: ap1", "node: ap4", 24, 'faults[0].node: value "ap4": no such node; did you mean ap2? allowed: ap1, ap2,'),
    ("port: 1", "port: 2", 24, "faults[0].port: value 2: node ap1 has 2 ports; allowed: 0 to 1"),
    ("slot_samples: 1024", "receive_delay_samples: 657, slot_samples: 1024", 25, "at least 1025 = lead_samples + 2"),
    ("slot_samples: 1024", "receive_delay_samples: 657, slot_samples: 1024", 25, "+ prefix_samples + receive_delay_s"),
    ("slot_samples: 1024", "slot_samples: 367", 25, "slots.slot_samples: value 367: must be at least 368"),
    ("slot_samples: 1024", "num_subcarriers: 128, slot_samples: 1024", 25, "value 128: must be below pilot_samples"),
    ("slot_samples: 1024", "num_subbands: 7, slot_samples: 1024", 25, "num_subbands: value 7: must divide num_subca"),
    ("{beams: 4", "{beams: 10", 26, "beam_sweep.beams: value 10: a pair has at most 9 beam pairs; allowed: 1 to 9,"),
    ("method: tls", "method: mle", 27, 'calibration.method: value "mle": did you mean ml? allowed: argos'),
    ("reference: ap2", "reference: ue1", 27, 'calibration.reference: value "ue1": no such node'),
    ("{repeats: 3, cooperating: [1, 3]}", "{ue: ap1}", 28, 'verification.ue: value "ap1": no such node; allowed: ue1'),
    ("[1, 3]", "[1, 4]", 28, "verification.cooperating[1]: value 4: the access points have 3 ports"),
    ("{repeats: 3, cooperating: [1, 3]}", "yes", 28, 'verification: value "yes": must be a mapping or null'),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), REPLACEMENTS)
def test_mistake_is_named_with_line_key_value_and_what_is_allowed(old, new, line, message):
    assert old in WHOLE
    text = WHOLE.replace(old, new, 1)
    assert failure(text).startswith(f"bed.yml:{line}: "), failure(text)
    assert message in failure(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bed.yml:1: the file is empty"),
        ("# nothing\n", "bed.yml:1: the file is empty"),
        ("42\n", "bed.yml:1: value 42: must be a mapping"),
        ("version: 1\n", "bed.yml:1: required key missing: nodes"),
        ("nodes: [{name: a}, {name: b}]\n", "bed.yml:1: required key missing: version"),
        ("[" * 5000, "bed.yml:1: nested too deeply"),
        ("- &a [" + "1," * 999 + "]\n- &b [" + "*a," * 999 + "]\n", "more than 200000 values"),
    ],
)
def test_file_that_is_no_testbed_is_refused(text, message):
    assert message in failure(text)


def test_first_of_several_mistakes_is_reported():
    assert failure(WHOLE.replace("passes: 2", "passes: 0").replace("seed: 7", "seed: x")).startswith("bed.yml:3: seed")


def test_misspelt_key_is_reported_rather_than_the_key_it_leaves_missing():
    assert "bed.yml:2: nodse: unknown key; did you mean nodes?" in failure(SMALL.replace("nodes", "nodse"))


def test_smallest_slot_that_holds_the_symbols_is_accepted():
    bed = testbed.parse(WHOLE.replace("slot_samples: 1024", "slot_samples: 368"))
    assert bed.slots.slot_samples == 16 + 2 * (32 + 128) + 32


def test_unreadable_files_are_named(tmp_path):
    for name, content, message in (("a.yml", None, "be read: No such file"), ("b.yml", b"\xff\x00", "not UTF-8")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(testbed.TestbedError, match=re.escape(str(path)) + ":.*" + message):
            testbed.load(path)
    path = tmp_path / "with space.yml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert testbed.load(path) == testbed.parse(SMALL)


def test_fingerprint_follows_what_a_calibration_depends_on_and_nothing_else():
    base = testbed.parse(WHOLE)
    same = [("seed: 7", "seed: 8"), ("null}", "3}"), ("name: ue1", "name: ue2"), ("method: tls", "method: ml")]
    for old, new in same:
        text = WHOLE.replace(old, new).replace("[[ue1, ap2]]", "[]")
        assert testbed.fingerprint(testbed.parse(text)) == testbed.fingerprint(base), new
    differs = [
        ("samp_rate: 1e6", "samp_rate: 2e6"),
        ("3.5E+9", "3.6E+9"),
        ("tx_gain_db: 10.5", "tx_gain_db: 10.6"),
        ("tx_gain_db: 10.5", "rx_gain_db: 10.5"),
        ("num_ports: 2", "num_ports: 3"),
        ("{name: ap2,", "{name: ap3,"),
    ]
    for old, new in differs:
        text = WHOLE.replace(old, new).replace("ap2-ap1: -10.0", "").replace("[[ue1, ap2]]", "[]")
        text = text.replace("reference: ap2", "reference: ap1")
        assert testbed.fingerprint(testbed.parse(text)) != testbed.fingerprint(base), new


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(WHOLE)), st.integers(0, 12), st.text("{}[]:,-&*!|>'\"%@`# \n\t0aé\x00.~?", max_size=4))
def test_damaged_file_is_parsed_or_refused_but_never_crashes(start, length, insert):
    text = WHOLE[:start] + insert + WHOLE[start + length :]
    message = ""
    try:
        testbed.parse(text)
    except testbed.TestbedError as error:
        message = str(error)
    assert message == "" or re.fullmatch(r"<string>:\d+: .+", message)

# SPDX-License-Identifier: GPL-3.0-or-later
"""GRC descriptions say what the blocks are; every example compiles."""

import ast
import inspect
import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pmt
import pytest
import virtual_usrp_device
import yaml
from gnuradio import dmimo, gr
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.core.ofdm_exchange import OfdmExchange
from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings
from gnuradio.grc.core.platform import Platform
from gnuradio.grc.core.schema_checker import BLOCK_SCHEME, Validator

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "grc").glob("*.yml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.grc"))
LEAVES = {"Waveforms", "Synchronization", "Calibration", "Precoding", "Sensing", "Simulation", "Radio"}
SECTIONS = ("Inputs", "Outputs", "Messages", "Parameters", "Reference")
UNITS = {"_hz": "Hz", "_s": "s", "_db": "dB", "_rad": "rad", "_ppm": "ppm", "_samples": "samples", "_m": "m"}
WORDS = re.compile(r"[A-Z][A-Za-z0-9 ,/'()-]*( \[[A-Za-z/%]+\])?")

SMALL = "{version: 1, nodes: [{name: ap1}, {name: ap2}, {name: ue1, kind: ue}], verification: {}}"
SMALL = Assembly(testbed.parse(SMALL))
SWEEP_ONLY = Assembly(SMALL.testbed, verify=False)
SYNC = "{version: 1, nodes: [{name: ap1}, {name: ap2}, {name: ue1, kind: ue}], beamsync: {}}"
SYNC = Assembly(testbed.parse(SYNC), protocol="sync")
TDD = "{version: 1, nodes: [{name: ap1}, {name: ap2}, {name: ue1, kind: ue}], bidirectional: {max_cfo_hz: 300}}"
TDD = Assembly(testbed.parse(TDD))
ALONE = """{version: 1, nodes: [{name: ap1, num_ports: 2}, {name: ue1, kind: ue}], propagation: {coupling_db: -15},
            mutual_coupling: {}, linearity: {}, verification: {}, slots: {slot_samples: 512, num_subcarriers: 36}}"""
ALONE = Assembly(testbed.parse(ALONE), protocol="linearize")
RADIO = "{version: 1, frontend: usrp, usrp: {radios: [{}]}, nodes: [{name: ap1}, {name: ap2}, {name: ap3}]}"
RADIO = Assembly(testbed.parse(RADIO))
EXCHANGE = OfdmExchange.from_numbers(1e6, 2, 2, 512, fft_size=256, cp_samples=32, num_subcarriers=192)
# What a constructor gets here where the description leaves it to the user's flowgraph. The name of the block is in
# front where it needs another than all others.
SAMPLES = {
    "assembly": lambda: SMALL,
    "beam_sweep_role.assembly": lambda: SWEEP_ONLY,
    "beamsync_leader.assembly": lambda: SYNC,
    "beamsync_follower.assembly": lambda: SYNC,
    "beamsync_monitor.assembly": lambda: SYNC,
    "bidirectional_calibrator.assembly": lambda: TDD,
    "bidirectional_monitor.assembly": lambda: TDD,
    "linearizer.assembly": lambda: ALONE,
    "linearity_monitor.assembly": lambda: ALONE,
    "mutual_coupling_role.assembly": lambda: ALONE,
    "loop_delay_monitor.assembly": lambda: RADIO,
    "schedule": lambda: SMALL.schedule,
    "roles": lambda: SMALL.roles("ap1"),
    "network": lambda: SMALL.network(),
    "name": lambda: "ap1",
    "node": lambda: "ap1",
    "samp_rate": lambda: 1e6,
    "silent_from": lambda: None,
    "unacknowledged": dict,
    "settings": lambda: virtual_radio(),
    "exchange": lambda: EXCHANGE,
}


@pytest.fixture(scope="module", autouse=True)
def virtual_usrp():
    """UHD knows the virtual USRP, where that can be built, from its first import on: that of the block's class."""
    if virtual_usrp_device.missing() is None:
        virtual_usrp_device.use()


def virtual_radio() -> RadioSettings:
    """Return the settings of a radio; skips where the virtual USRP cannot be built."""
    virtual_usrp_device.library()
    own = {"clock_source": "internal", "time_source": "internal"}
    return RadioSettings(virtual_usrp_device.arguments(), 1e6, {"ap1": [RadioPort(0, 1e9), RadioPort(1, 1e9)]}, **own)


def class_name(data: dict) -> str:
    return data["id"].removeprefix("dmimo_")


def is_variable(data: dict) -> bool:
    return "value" in data


def constructor_call(data: dict) -> ast.Call | None:
    """Return the call in the `make` template, every ${...} replaced by a name; None when it is not one call."""
    template = data.get("templates", {}).get("make", data.get("templates", {}).get("var_make", ""))
    try:
        tree = ast.parse(re.sub(r"\$\{[^}]*\}", "x", template).strip())
    except SyntaxError:
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr | ast.Assign):
        return None
    return tree.body[0].value if isinstance(tree.body[0].value, ast.Call) else None


def problems(data: dict) -> list[str]:
    """Return what a block description does otherwise than all of ours do."""
    return [
        *_form_problems(data),
        *_label_problems(data),
        *_documentation_problems(data),
        *_parameter_problems(data),
        *([] if is_variable(data) else _class_problems(data)),
    ]


def _form_problems(data: dict) -> list[str]:
    found = []
    validator = Validator(BLOCK_SCHEME)
    validator.run(data)
    found += [f"not a block description: {message.message}" for message in validator.messages]
    if data.get("file_format") != 1:
        found.append("file_format must be 1")
    root, _, leaf = data.get("category", "").partition("/")
    if root != "[Distributed MIMO]" or leaf not in LEAVES:
        found.append(f"category {data.get('category')!r}: must be [Distributed MIMO]/ and one of {sorted(LEAVES)}")
    return found


def _label_problems(data: dict) -> list[str]:
    found = []
    if not WORDS.fullmatch(data.get("label", "")):
        found.append(f"label {data.get('label')!r}: must be words")
    for parameter in data.get("parameters", []):
        name, label = parameter["id"], parameter.get("label", "")
        if not WORDS.fullmatch(label):
            found.append(f"label {label!r} of {name}: must be words, a unit in brackets last")
        for suffix, unit in UNITS.items():
            if name.endswith(suffix) and not label.endswith(f"[{unit}]"):
                found.append(f"label {label!r} of {name}: must end in [{unit}]")
    hidden = [parameter.get("hide", "none") in ("part", "all") for parameter in data.get("parameters", [])]
    if hidden != sorted(hidden):
        found.append("parameters with hide: part must come last")
    return found


def _documentation_problems(data: dict) -> list[str]:
    text = data.get("documentation", "")
    wanted = ("Parameters",) if is_variable(data) else SECTIONS
    places = [re.search(rf"^{section}s?\b", text, re.MULTILINE) for section in wanted]
    found = [f"documentation: no section {section}" for section, place in zip(wanted, places, strict=True) if not place]
    starts = [place.start() for place in places if place]
    if starts != sorted(starts):
        found.append(f"documentation: sections must be in the order {', '.join(wanted)}")
    purpose = text[: min(starts, default=len(text))].strip()
    if len(purpose) < 20:
        found.append("documentation: must begin with the purpose")
    for parameter in data.get("parameters", []):
        words = parameter.get("label", "").partition(" [")[0]
        if parameter["id"] not in text and words.lower() not in " ".join(text.lower().split()):
            found.append(f"documentation: says nothing of {parameter['id']}")
    for port in [*data.get("inputs", []), *data.get("outputs", [])]:
        if port.get("domain") == "message" and not re.search(rf"\b{port['id']}\b", text):
            found.append(f"documentation: says nothing of message port {port['id']}")
    return found


def _parameter_problems(data: dict) -> list[str]:
    used = yaml.safe_dump({key: data.get(key) for key in ("templates", "inputs", "outputs", "value")}, width=10**6)
    expressions = " ".join(re.findall(r"\$\{(.*?)\}", used))
    return [
        f"parameter {parameter['id']} is not used"
        for parameter in data.get("parameters", [])
        if not re.search(rf"\b{parameter['id']}\b", expressions)
    ]


def _class_problems(data: dict) -> list[str]:
    name = class_name(data)
    if name not in dmimo.__all__:
        return [f"there is no block gnuradio.dmimo.{name}"]
    block = getattr(dmimo, name)
    call = constructor_call(data)
    if call is None or ast.unparse(call.func) != f"dmimo.{name}":
        return [f"make must be one call of dmimo.{name}"]
    found = ["make: arguments must be given by keyword"] if call.args else []
    known = inspect.signature(block.__init__).parameters
    given = {keyword.arg for keyword in call.keywords}
    found += [f"make: dmimo.{name} has no argument {word}" for word in sorted(given - set(known))]
    required = {word for word, value in known.items() if value.default is value.empty} - {"self"}
    found += [f"make: argument {word} is missing" for word in sorted(required - given)]
    for callback in data["templates"].get("callbacks", []):
        setter = re.match(r"(?:self\.\$\{id\}\.)?(\w+)\(", callback)
        if setter is None or not callable(getattr(block, setter[1], None)):
            found.append(f"callback {callback!r}: {name} has no such method")
    return found


def ports_of(instance) -> dict[str, object]:
    """Return the numbers of stream ports and the names of message ports that a block really has."""
    names = {side: pmt.to_python(getattr(instance, f"message_ports_{side}")()) for side in ("in", "out")}
    if isinstance(instance, gr.hier_block2):
        names = {side: instance.__dict__.get(f"registered_{side}", []) for side in ("in", "out")}
    return {
        "stream inputs": instance.input_signature().max_streams(),
        "stream outputs": instance.output_signature().max_streams(),
        "message inputs": sorted(set(map(str, names["in"])) - {"system"}),
        "message outputs": sorted(map(str, names["out"])),
    }


def described_ports(block, real: dict[str, object]) -> dict[str, object]:
    """Return the same of a block in a GRC flowgraph; a message port may be hidden where it is really there."""
    sides = (("inputs", block.active_sinks), ("outputs", block.active_sources))
    found = {f"stream {side}": sum(port.domain == "stream" for port in ports) for side, ports in sides}
    found |= {f"message {side}": sorted(p.key for p in ports if p.domain == "message" and p.key != "system")
              for side, ports in sides}  # fmt: skip
    for side, ports in (("inputs", block.sinks), ("outputs", block.sources)):
        hidden = {port.key for port in ports if port.domain == "message" and port.hidden}
        found[f"message {side}"] = sorted([*found[f"message {side}"], *hidden.intersection(real[f"message {side}"])])
    return found


def load_platform(directory: Path) -> Platform:
    """Return GRC with the descriptions in `directory` added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRC_BLOCKS_PATH", str(directory))
        version = gr.major_version(), gr.api_version(), gr.minor_version()
        platform = Platform(name="test", prefs=gr.prefs(), version=gr.version(), version_parts=version)
        platform.build_library()
    return platform


@pytest.fixture(scope="module")
def platform():
    return load_platform(ROOT / "grc")


@contextmanager
def recorded_hier_ports():
    """Hierarchical blocks made in this context keep the names of their message ports, which they do not tell later."""
    with pytest.MonkeyPatch.context() as patch:
        for side in ("in", "out"):

            method = f"message_port_register_hier_{side}"
            own = getattr(gr.hier_block2, method)

            def register(self, name, key=f"registered_{side}", original=own):
                self.__dict__.setdefault(key, []).append(name)
                original(self, name)

            patch.setattr(gr.hier_block2, method, register)
        yield


def construct(call: str):
    """Return the block that rendered `make` text constructs, and whether SAMPLES had to help."""
    tree = ast.parse(call.strip(), mode="eval").body
    name = tree.func.attr
    arguments, helped = {}, False
    for keyword in tree.keywords:
        try:
            arguments[keyword.arg] = eval(ast.unparse(keyword.value), {"dmimo": dmimo})
        except (NameError, AttributeError):
            sample = SAMPLES.get(f"{name}.{keyword.arg}", SAMPLES.get(keyword.arg))
            assert sample, f"{keyword.arg}: neither a default that can be constructed nor in SAMPLES"
            arguments[keyword.arg], helped = sample(), True
    with recorded_hier_ports():
        return getattr(dmimo, name)(**arguments), helped


def test_every_block_has_a_description():
    if not FILES:
        pytest.skip("no description written yet")
    assert {path.name for path in FILES} >= {
        f"dmimo_{name}.block.yml" for name in dmimo.__all__ if not name.startswith("_")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_description_follows_the_rules(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert path.name == f"{data['id']}.block.yml"
    assert data["id"].startswith("dmimo_")
    assert problems(data) == []


def port_differences(platform: Platform, data: dict) -> list[str]:
    """Return where the ports that GRC draws are not those that the block has."""
    flowgraph = platform.make_flow_graph()
    block = flowgraph.new_block(data["id"])
    if block is None or block.is_dummy_block:
        return ["GRC did not load it"]
    flowgraph.rewrite()
    if is_variable(data):
        return ["a variable has no ports"] if block.active_sinks + block.active_sources else []
    instance, helped = construct(block.templates.render("make"))
    real = ports_of(instance)
    described = described_ports(block, real)
    # Where GRC's defaults could not be constructed, the number of streams is only right in kind.
    return [
        f"{side}: described {described[side]}, really {real[side]}"
        for side in real
        if described[side] != real[side] and not (helped and "stream" in side and described[side] and real[side])
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_described_ports_are_those_of_the_class(path, platform):
    assert port_differences(platform, yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_compiles(path, tmp_path):
    environment = os.environ | {"GRC_BLOCKS_PATH": str(ROOT / "grc")}
    result = subprocess.run(["/usr/bin/grcc", "-o", tmp_path, path], env=environment, capture_output=True, text=True,
                            timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    options = yaml.safe_load(path.read_text(encoding="utf-8"))["options"]["parameters"]
    program = tmp_path / f"{options['id']}.py"
    compile(program.read_text(), program, "exec")
    assert "dmimo." in program.read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_opens_with_a_note_and_is_named_like_its_file(path):
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    options = data["options"]["parameters"]
    assert options["id"] == path.stem
    assert options["title"]
    assert options["generate_options"] in ("no_gui", "qt_gui")
    notes = [block["parameters"]["note"] for block in data["blocks"] if block["id"] == "note"]
    assert any(len(note) > 60 for note in notes), "a note must say what it shows and what to look at"


GOOD = """\
id: dmimo_product_probe
label: Product Probe
category: '[Distributed MIMO]/Simulation'
parameters:
- {id: num_outputs, label: Number of entries, dtype: int, default: '2'}
- {id: history_samples, label: 'History [samples]', dtype: int, default: '256'}
- {id: key, label: Key, dtype: string, default: c}
- {id: quantity, label: Quantity, dtype: string, default: real, hide: part}
inputs:
- {domain: message, id: phases}
outputs:
- {domain: stream, dtype: float, multiplicity: '${num_outputs}'}
- {domain: message, id: error, optional: true}
asserts:
- ${ history_samples > 0 }
templates:
  imports: from gnuradio import dmimo
  make: |-
    dmimo.product_probe(
      num_outputs=${num_outputs}, key=${key}, history=${history_samples}, quantity=${quantity})
documentation: |-
  Turns products into streams.

  Inputs: none.
  Outputs: one stream for each entry.
  Messages: phases in; error out.
  Parameters: number of entries, history, key, quantity.
  Reference: none.
file_format: 1
"""


def test_good_description_has_no_problem():
    assert problems(yaml.safe_load(GOOD)) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/Simulation", "/Misc", "category"),
        ("'[Distributed MIMO]", "'[Core]", "category"),
        ("label: Product Probe", "label: product_probe", "must be words"),
        ("label: Number of entries", "label: num_outputs", "must be words"),
        ("History [samples]", "History", "must end in [samples]"),
        ("default: '2'}", "default: '2', hide: part}", "hide: part must come last"),
        ("id: dmimo_product_probe", "id: dmimo_product_prope", "no block gnuradio.dmimo.product_prope"),
        ("  num_outputs=${num_outputs}", "  ${num_outputs}", "by keyword"),
        (", quantity=${quantity})", ")", "parameter quantity is not used"),
        (", key=${key}", "", "argument key is missing"),
        ("quantity=${quantity})", "quality=${quantity})", "has no argument quality"),
        ("    dmimo.product", "    dmimo.blocks.product", "must be one call of dmimo.product_probe"),
        ("  make:", "  callbacks: ['set_key(${key})']\n  make:", "has no such method"),
        ("  Inputs: none.\n", "", "no section Inputs"),
        ("  Reference: none.\n", "", "no section Reference"),
        ("  Turns products into streams.\n", "", "must begin with the purpose"),
        (", quantity.", ".", "says nothing of quantity"),
        ("; error out.", ".", "says nothing of message port error"),
        ("file_format: 1", "file_format: 2", "file_format"),
        ("inputs:", "inputz: 1\ninputs:", "not a block description"),
    ],
)
def test_bad_description_is_found(old, new, message):
    assert old in GOOD
    found = problems(yaml.safe_load(GOOD.replace(old, new)))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", []),
        ("'${num_outputs}'", "'${num_outputs + 1}'", ["stream outputs: described 3, really 2"]),
        ("outputs:", "- {domain: stream, dtype: complex}\noutputs:", ["stream inputs: described 1, really 0"]),
        ("id: phases", "id: end", ["message inputs: described ['end'], really ['phases']"]),
        ("- {domain: message, id: error, optional: true}\n", "", ["message outputs: described [], really ['error']"]),
        ("file_format: 1", "file_format: 7", ["GRC did not load it"]),
    ],
)
def test_wrong_ports_are_found(old, new, expected, tmp_path):
    text = GOOD.replace(old, new) if old else GOOD
    # A name of its own, so that it does not meet the real description.
    text = text.replace("dmimo_product_probe", "dmimo_test_probe")
    (tmp_path / "dmimo_test_probe.block.yml").write_text(text)
    assert port_differences(load_platform(tmp_path), yaml.safe_load(text)) == expected

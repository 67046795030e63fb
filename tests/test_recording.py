# SPDX-License-Identifier: GPL-3.0-or-later
"""Recordings: bit for bit what nodes received, valid SigMF, whole after a kill, and refused where they do not fit."""

import json
import os
import shutil
import time
import warnings
from dataclasses import replace as changed_field
from datetime import UTC, datetime

import jsonschema
import numpy as np
import pytest
import sigmf
from bidirectional_beds import SMALL
from gnuradio.dmimo import recorded, records, replay, reports, testbed
from gnuradio.dmimo import recording_format as form
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.recording import Recorder
from sigmf import schema as sigmf_schema

SWEEP = """
version: 1
node_defaults: {panel: {num_antennas: 4, beams: [0, 1]}, oscillator: {linewidth_hz: 0.01}}
nodes: [{name: ap1, num_ports: 2}, {name: ap2}, {name: ue1, kind: ue}]
slots: {slot_samples: 512}
verification: {uplink_repeats: 2, repeats: 2, random_starts: 2}
"""
SYNC = """
version: 1
node_defaults: {oscillator: {linewidth_hz: 1.0e-5, drift_hz: 0.02}}
nodes:
  - {name: ap1, num_ports: 2, oscillator: {cfo_hz: 120}}
  - {name: ap2, num_ports: 2, oscillator: {cfo_hz: -80}}
  - {name: ue1, kind: ue, oscillator: {cfo_hz: 10}}
propagation: {delays: false, coupling_db: -10}
slots: {slot_samples: 256, lead_samples: 8, prefix_samples: 8, pilot_samples: 32, num_subcarriers: 24, num_subbands: 1}
verification: {uplink_repeats: 2, repeats: 2, random_starts: 2}
beamsync: {sync_samples: 96, budget_deg: 5, linewidth_hz: 1.0e-5, drift_hz: 0.02, watches: 2}
"""
CLOCKS = """
version: 1
node_defaults: {oscillator: {linewidth_hz: 1.0e-5}}
nodes:
  - {name: ap1}
  - {name: ap2, num_ports: 2, oscillator: {cfo_hz: -7000}, clock: {offset_samples: 200.4, follow_cfo: true}}
propagation: {coupling_db: -10}
slots: {slot_samples: 2048}
beamsync: {timing: true, preamble_samples: 256, max_delay_samples: 300, sync_samples: 512, linewidth_hz: 1.0e-5}
"""
# text, protocol, seconds of a synchronisation, a slot that is to be lost
RUNS = {"sweep": (SWEEP, None, 0.0, 3), "sync": (SYNC, "sync", 2.0, 6), "clocks": (CLOCKS, "sync", 0.5, 1),
        "bidirectional": (SMALL, None, 0.0, 2)}
LOST = {"sweep": "ue1", "sync": "ap2", "clocks": "ap2", "bidirectional": "ue2"}


def assembly(name, lost=True, verify=True):
    text, protocol, _, slot = RUNS[name]
    fault = f"faults: [{{kind: lost_slot, node: {LOST[name]}, slot: {slot}}}]\n" if lost else ""
    return Assembly(testbed.parse(text + fault), verify, protocol)


class Heard:
    """A network that keeps what it gave out, by start sample."""

    def __init__(self, network):
        self._network, self.received = network, {}

    def __getattr__(self, name):
        return getattr(self._network, name)

    def process(self, x, start, *args, **kwargs):
        out = self._network.process(x, start, *args, **kwargs)
        self.received[start] = out.copy()
        return out


class Kept:
    """Keeps all products, as a collector without phases of its own."""

    phases = frozenset()

    def __init__(self):
        self.products = []

    def update(self, product):
        self.products.append(product)


def play(made, duration_s=0.0, folder=None, close=True):
    """Report, network and products of a run in a loop, recorded in a folder if there is one."""
    network, collectors, kept = Heard(made.network()), made.collectors(), Kept()
    recorder = None if folder is None else Recorder(folder, made, duration_s=duration_s)
    run = DirectRun(made.schedule, network, {name: made.roles(name) for name in made.schedule.nodes},
                    [*collectors.values(), kept], until_sample=round(duration_s * made.testbed.samp_rate),
                    max_attempts=made.testbed.slots.max_attempts, recorders=recorder and recorder.nodes)
    error = run.run()
    if recorder is not None and close:
        recorder.close(error, run.releases, run.end_sample)
    report = reports.report(reports.Run(made, network, collectors, error, run.releases, run.end_sample))
    return report, network, kept.products, recorder


def encoded(report, folder):
    records.write_json(folder / "encoded.json", report)
    return (folder / "encoded.json").read_bytes()


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """A recorded run in which a slot was lost: its name, folder, report, network and products."""
    folder = tmp_path_factory.mktemp(request.param) / "recording"
    report, network, products, _ = play(assembly(request.param), RUNS[request.param][2], folder)
    assert report["error"] is None
    return request.param, folder, report, network, products


@pytest.fixture
def sweep(tmp_path):
    """Folder of a recorded sweep."""
    play(assembly("sweep"), folder=tmp_path / "recording")
    return tmp_path / "recording"


# -- record, then replay ----------------------------------------------------------------------------------------------


def test_replay_gives_the_report_of_the_run_byte_for_byte(run, tmp_path):
    _, folder, report, _, products = run
    recording = recorded.load(folder)
    player, outcome = replay.run(recording, replay.assembly_of(recording))
    assert outcome.error is None
    assert encoded(outcome.report, tmp_path) == encoded(report, tmp_path)
    assert player.compared == len(products)
    assert player.different == []


def test_replay_makes_the_products_of_the_run(run):
    _, folder, _, _, products = run
    recording = recorded.load(folder)
    player = replay.Replay(recording, replay.assembly_of(recording))
    kept = Kept()
    player._members._collectors.append(kept)
    player.run()
    assert [product.phase for product in kept.products] == [product.phase for product in products]
    for again, once in zip(kept.products, products, strict=True):
        assert again.values.keys() == once.values.keys()
        for key, value in once.values.items():
            np.testing.assert_array_equal(again.values[key], value)


def test_recording_does_not_change_the_run(run, tmp_path):
    name, _, report, *_ = run
    assert encoded(play(assembly(name), RUNS[name][2])[0], tmp_path) == encoded(report, tmp_path)


def test_a_changed_sample_changes_what_is_computed_and_is_noticed(sweep):
    """The replay computes from the samples: the products are not taken from somewhere else."""
    recording = recorded.load(sweep)
    used = next(one for one in recording.nodes["ap2"].attempts if one.counted and one.grant.slot == 0)
    samples = np.memmap(sweep / "ap2.sigmf-data", np.complex64, "r+")
    samples[used.first + 100 : used.first + 140] *= np.complex64(1.001)
    samples.flush()
    player, outcome = replay.run(recording, replay.assembly_of(recording))
    assert "calibration" in player.different[0] or player.different[0] == "sweep"
    assert "not those of the recorded run" in outcome.report["doubts"][-1]


# -- what is in the files ---------------------------------------------------------------------------------------------


def test_samples_are_what_the_ports_received_before_any_correction(run):
    """By the SigMF package alone: every annotated slot against what the network gave out at its start."""
    _, folder, _, network, _ = run
    compared = 0
    for node in network.names:
        one = sigmf.fromfile(str(folder / f"{node}.sigmf-meta"))
        assert one.num_channels == network.ports(node).stop - network.ports(node).start
        samples = one.read_samples().reshape(-1, one.num_channels).T
        for note in one.get_annotations():
            first, count = note["core:sample_start"], note["core:sample_count"]
            if note["dmimo:status"] == "ok":
                heard = network.received[note["dmimo:start"]][network.ports(node)]
                np.testing.assert_array_equal(samples[:, first : first + count], heard)
                compared += count
        assert note["core:sample_start"] + note["core:sample_count"] == samples.shape[1]
    assert compared > 10_000


def test_files_are_valid_sigmf_and_every_hash_is_right(run):
    _, folder, *_ = run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collection = sigmf.fromfile(str(folder / form.COLLECTION))  # compares the hashes of the metadata
        content = json.loads((folder / form.COLLECTION).read_text())
        # Streams are objects by the specification's text and for the package, but arrays by its schema.
        streams = content["collection"].pop("core:streams")
        assert all(stream.keys() == {"name", "hash"} for stream in streams)
        jsonschema.validate(content, sigmf_schema.get_schema(schema_file=sigmf_schema.SCHEMA_COLLECTION))
        assert len(collection) == len(recorded.load(folder).nodes)
        for stream in collection.get_stream_names():
            one = sigmf.fromfile(str(folder / f"{stream}.sigmf-meta"))  # compares the hash of the samples
            one.validate()
            assert one.get_global_field("core:collection") == form.NAME


def test_every_attempt_is_annotated_once_and_those_that_count_are_marked(run):
    name, folder, report, *_ = run
    made = assembly(name)
    for node, found in recorded.load(folder).nodes.items():
        grants = [attempt.grant for attempt in found.attempts]
        assert len(set(grants)) == len(grants) == report["slots"]
        lost = [attempt for attempt in found.attempts if attempt.status != "ok"]
        assert len(lost) == (node == LOST[name])
        retried = {attempt.grant for attempt in found.attempts if not attempt.counted}
        assert {grant[:2] for grant in retried} == {(RUNS[name][3], 0)}
        for attempt in found.attempts:
            assert made.schedule.slots[attempt.grant.slot].index == attempt.grant.slot


def test_captures_begin_where_samples_do_not_continue(run):
    _, folder, _, _, _ = run
    for path in folder.glob("*.sigmf-meta"):
        content = json.loads(path.read_text())
        starts = {note["core:sample_start"]: note["dmimo:start"] for note in content["annotations"]
                  if note["core:sample_count"]}
        captures = {one["core:sample_start"]: one["core:global_index"] for one in content["captures"]}
        count = content["global"]["dmimo:slot_samples"]
        jumps = {first: start for first, start in starts.items() if starts.get(first - count) != start - count}
        assert captures == jumps


def test_time_of_captures_follows_from_that_of_sample_zero(tmp_path):
    made = assembly("sync")
    recorder = play(made, 2.0, tmp_path, close=False)[-1]
    recorder.sample_zero = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
    recorder.close(None, 0, 0)
    captures = json.loads((tmp_path / "ap1.sigmf-meta").read_text())["captures"]
    assert len(captures) > 3
    for capture in captures:
        time = datetime.fromisoformat(capture["core:datetime"])
        late_s = (time - recorder.sample_zero).total_seconds()
        assert late_s == pytest.approx(capture["core:global_index"] / made.testbed.samp_rate, abs=1e-6)
        assert capture["core:frequency"] == made.testbed.center_freq
    sigmf.fromfile(str(tmp_path / "ap1.sigmf-meta")).validate()


def test_digest_tells_a_single_bit_and_nothing_else():
    values = {"a": np.arange(4.0), "b": True, "c": ("x", "y"), "d": 3, "e": {"f": np.array([True])}, "g": 0.5}
    same = {"g": np.float64(0.5), "e": {"f": np.array([1])}, "d": np.int64(3), "c": ["x", "y"], "b": 1,
            "a": np.arange(8.0)[::2] / 2}
    assert form.digest(values) == form.digest(same)
    for key, other in (("a", np.nextafter(np.arange(4.0), 9)), ("a", np.arange(4.0)[None]), ("c", ("xy",)),
                       ("d", 4), ("e", {"g": np.array([True])}), ("g", -0.5)):
        assert form.digest({**values, key: other}) != form.digest(values), key


# -- other settings of the estimator ----------------------------------------------------------------------------------


def test_another_estimator_on_the_recording_gives_what_a_run_with_it_gives(tmp_path):
    """What is sent in a sweep does not depend on the estimator: a run with it hears the same samples."""
    play(assembly("sweep", verify=False), folder=tmp_path / "r")
    text = SWEEP.replace("version: 1", "version: 1\nfrontend: replay\nrecording: r\ncalibration: {method: argos}")
    (tmp_path / "bed.yml").write_text(text)
    recording, made = replay.load_testbed(tmp_path / "bed.yml", verify=False)
    player, outcome = replay.run(recording, made)
    assert player.different == ["sweep"]
    assert outcome.report.pop("doubts")[0].startswith("1 of 1 products are not those")
    asked = testbed.parse(SWEEP + "calibration: {method: argos}\n")
    expected, *_ = play(Assembly(changed_field(asked, faults=assembly("sweep").testbed.faults), verify=False))
    outcome.report["testbed"]["faults"] = expected["testbed"]["faults"]
    assert encoded(outcome.report, tmp_path) == encoded(expected, tmp_path)


# -- runs that were cut off -------------------------------------------------------------------------------------------


def written(recorder):
    """Let the recorder write all it was given."""
    recorder._closed.set()
    recorder._writer.join()
    for node in recorder.nodes.values():
        node.write()


@pytest.fixture(scope="module")
def unclosed(tmp_path_factory):
    """Folder as a killed process leaves it, and the products of the whole run."""
    folder = tmp_path_factory.mktemp("cut") / "recording"
    *_, products, recorder = play(assembly("sync"), 2.0, folder, close=False)
    written(recorder)
    shutil.copytree(folder, folder.with_name("copy"))
    recorder.close(None, 0, 0)
    return folder.with_name("copy"), products


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "cut")


def test_killed_run_opens_with_the_sigmf_package_too(unclosed):
    folder, _ = unclosed
    collection = sigmf.fromfile(str(folder / form.COLLECTION))
    assert collection.get_collection_field("dmimo:complete") is False
    for stream in collection.get_stream_names():
        one = sigmf.fromfile(str(folder / f"{stream}.sigmf-meta"))
        one.validate()
        assert one.sample_count > 0


@pytest.mark.parametrize("seed", range(12))
def test_cut_anywhere_a_recording_gives_the_estimates_up_to_there(unclosed, tmp_path, seed):
    """Each journal and data file cut at a byte of its own, as after a power cut."""
    folder, products = copy_of(unclosed[0], tmp_path), unclosed[1]
    rng = np.random.default_rng(seed)
    for path in (path for path in folder.iterdir() if path.suffix in (".journal", ".sigmf-data")):
        with open(path, "r+b") as file:
            file.truncate(int(path.stat().st_size * rng.uniform(0.3, 1.0)))
    recording = recorded.load(folder)
    assert not recording.complete
    player, outcome = replay.run(recording, replay.assembly_of(recording))
    done = len(recording.phases)
    assert 0 < done < len(products)
    assert player.different == []
    assert outcome.error == recording.error
    assert f"cut off: it holds {done} phases, {recording.slots_done} slots" in outcome.error
    assert recording.slots_done == sum(
        assembly("sync").schedule.phase(product.phase).count for product in products[:done])
    assert recorded.recover(folder)
    again = recorded.load(folder)
    assert again.phases == recording.phases
    assert again.slots_done == recording.slots_done == again.content["dmimo:slots_done"]
    assert again.nodes == recording.nodes
    assert not recorded.recover(folder)
    for path in folder.glob("*.sigmf-meta"):
        one = sigmf.fromfile(str(path))
        one.validate()
        assert one.sample_count == one._get_sample_count_from_annotations()
    sigmf.fromfile(str(folder / form.COLLECTION))


def test_run_that_was_killed_before_its_first_slot_holds_nothing(tmp_path):
    recorder = Recorder(tmp_path / "r", assembly("sweep"))
    shutil.copytree(tmp_path / "r", tmp_path / "cut")
    recorder.close(None, 0, 0)
    for recover in (False, True):
        assert recorded.recover(tmp_path / "cut") if recover else True
        recording = recorded.load(tmp_path / "cut")
        assert replay.Replay(recording, replay.assembly_of(recording)).run().startswith("the recording was cut off: it "
                                                                                        "holds 0 phases, 0 slots")


def test_collection_is_kept_up_to_date_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.recording.COLLECTION_S", 0.02)
    made = assembly("sweep")
    recorder = play(made, folder=tmp_path, close=False)[-1]
    deadline = time.monotonic() + 60
    while (content := json.loads((tmp_path / form.COLLECTION).read_text())["collection"])["dmimo:phases_done"] < 4:
        assert time.monotonic() < deadline
    assert content["dmimo:slots_done"] == len(made.schedule.slots)
    assert len(made.schedule.phases) == 4
    with pytest.raises(records.RecordError, match="the run still goes on"):
        recorded.recover(tmp_path)
    recorder.close("stopped by hand", 0, 0)
    assert recorded.load(tmp_path).error == "stopped by hand"


def test_failed_run_is_complete_and_replays_to_its_error(tmp_path):
    text = SWEEP.replace("slot_samples: 512", "slot_samples: 512, max_attempts: 1")
    report, *_ = play(Assembly(testbed.parse(text + "faults: [{kind: lost_slot, node: ap2, slot: 20}]\n")),
                      folder=tmp_path)
    assert "slot 20" in report["error"]
    recording = recorded.load(tmp_path)
    assert recording.complete
    _, outcome = replay.run(recording, replay.assembly_of(recording))
    assert encoded(outcome.report, tmp_path) == encoded(report, tmp_path)


# -- what is refused --------------------------------------------------------------------------------------------------


def refusal(action, *arguments):
    with pytest.raises(records.RecordError) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["ap1.sigmf-data", "ue1.sigmf-meta", "ap2.sigmf-data"])
def test_file_that_was_changed_is_named(sweep, name):
    data = bytearray((sweep / name).read_bytes())
    data[len(data) // 2] ^= 1
    (sweep / name).write_bytes(data)
    assert f"{name}: does not match its hash in" in refusal(recorded.load, sweep)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("ap1.sigmf-data", None, "ap1.sigmf-data: cannot be read: No such file"),
    ("ap1.sigmf-meta", None, "ap1.sigmf-meta: cannot be read: No such file"),
    (form.COLLECTION, None, "run.sigmf-collection: cannot be read: No such file"),
    (form.COLLECTION, "{", "run.sigmf-collection: damaged: not JSON"),
    (form.COLLECTION, "[]", "run.sigmf-collection: damaged: no JSON object"),
    (form.COLLECTION, '{"collection": {"core:version": "1.0.0"}}', "no recording of gr-dmimo: core:streams, "),
])
def test_file_that_is_missing_or_no_recording_is_named(sweep, name, content, message):
    (sweep / name).unlink() if content is None else (sweep / name).write_text(content)
    assert message in refusal(recorded.load, sweep)


def test_newer_format_is_refused(sweep):
    path = sweep / form.COLLECTION
    path.write_text(path.read_text().replace('"name":"dmimo","version":"1.', '"name":"dmimo","version":"2.'))
    assert "format 2.0.0 is newer than this release reads" in refusal(recorded.load, sweep)


def test_directory_with_a_recording_is_not_written_to(sweep):
    before = {path.name: path.read_bytes() for path in sweep.iterdir()}
    assert "holds a recording already" in refusal(Recorder, sweep, assembly("sweep"))
    assert {path.name: path.read_bytes() for path in sweep.iterdir()} == before


@pytest.mark.parametrize(("old", "new", "message"), [
    ("num_antennas: 4", "num_antennas: 8", "nodes[0].panel.num_antennas is 4 in the recording, 8 in the testbed"),
    ("slot_samples: 512", "slot_samples: 1024", "slots.slot_samples is 512 in the recording, 1024 in the testbed"),
    ("random_starts: 2", "random_starts: 3", "verification.random_starts is 2 in the recording, 3 in the testbed"),
    (", {name: ap2}", ", {name: ap3}", "nodes[1].name is 'ap2' in the recording, 'ap3' in the testbed"),
    ("{name: ap2}, ", "{name: ap2}, {name: ap3}, ", "nodes is "),
])
def test_recording_of_another_testbed_is_refused_by_key(sweep, old, new, message):
    assert old in SWEEP
    path = sweep.parent / "bed.yml"
    path.write_text(SWEEP.replace(old, new) + "frontend: replay\nrecording: recording\n")
    assert message in refusal(replay.load_testbed, path)


def test_recording_of_another_protocol_or_run_is_refused(sweep):
    path = sweep.parent / "bed.yml"
    path.write_text(SWEEP + "frontend: replay\nrecording: recording\n")
    assert "of a run with verification" in refusal(replay.load_testbed, path, None, False)
    assert "seed is 1 in the recording, 2 in the testbed" in refusal(replay.load_testbed, path, 2)
    recording = recorded.load(sweep)
    recording.content["dmimo:schedule_sha256"] = "0" * 64
    assert "made another schedule of this testbed" in refusal(replay.assembly_of, recording)
    recording.content["dmimo:protocol"] = "bidirectional"
    with pytest.raises(ValueError, match="no section bidirectional"):
        replay.assembly_of(recording)


def test_settings_that_change_the_samples_of_another_node_are_noticed_in_its_beam(sweep):
    """A replay that computes other beams than the run stops there, rather than to go on with the wrong samples."""
    recording = recorded.load(sweep)
    node = recording.nodes["ue1"]
    wrong = tuple(one._replace(beam=one.beam + 1) if one.grant.slot == 5 else one for one in node.attempts)
    nodes = {**recording.nodes, "ue1": changed_field(node, attempts=wrong)}
    error = replay.Replay(changed_field(recording, nodes=nodes), replay.assembly_of(recording)).run()
    assert error.startswith("slot 5 (sweep): node ue1 received with beam")


def test_samples_are_laid_out_as_a_run_hands_them_over(sweep):
    node = recorded.load(sweep).nodes["ap1"]
    samples = node.samples(node.attempts[0])
    assert samples.shape == (2, 512)
    assert samples.dtype == np.complex64
    assert samples.flags.c_contiguous


@pytest.mark.parametrize("what", ["full", "slow"])
def test_disk_that_does_not_take_the_samples_ends_the_run_and_leaves_what_it_took(what, tmp_path, monkeypatch):
    made = assembly("sweep")
    recorder = Recorder(tmp_path / "r", made)
    if what == "slow":
        monkeypatch.setattr("gnuradio.dmimo.recording.MOST_PENDING", 10_000)
        monkeypatch.setattr(recorder.nodes["ap1"], "write", lambda: None)
    else:
        write, room = os.write, [20_000]

        def limited(descriptor, data):
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(28, "No space left on device")
            return write(descriptor, data)

        monkeypatch.setattr("gnuradio.dmimo.recording.os.write", limited)
    run = DirectRun(made.schedule, made.network(), {name: made.roles(name) for name in made.schedule.nodes},
                    list(made.collectors().values()), recorders=recorder.nodes)
    with pytest.raises(OSError, match="No space left" if what == "full" else "slower than samples come"):  # noqa: PT012
        while True:  # the sweep is short: until the thread that writes has come to it
            run.run()
            time.sleep(0.06)
            run = DirectRun(made.schedule, made.network(), {name: made.roles(name) for name in made.schedule.nodes},
                            list(made.collectors().values()), recorders=recorder.nodes)
    recorder._closed.set()
    recorder._writer.join()
    assert not recorded.load(tmp_path / "r").complete

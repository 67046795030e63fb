# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols.slots import CHOSEN, Product, build_schedule
from gnuradio.dmimo.protocols.verification import DOWNLINK, TRAINING, UPLINK, Plan, VerificationRole, Verifier

PORTS = {"a": 1, "b": 3, "ue": 2, "c": 2}
BEAMS = {"a": 3, "b": 2, "ue": 1, "c": 4}
APS = ("a", "b", "c")
CFO = {"a": 20.0, "b": -45.0, "c": 31.0, "ue": 50.0}


def verify(seed=3, *, wrong=1.0, start=50_000, calibrated_at=20_000, random_starts=40, repeats=8, options=None,
           downlink_noise=None, receive_delay=0, change=None, **air_options):
    """Report and ideal of a verification with the true calibration of an earlier time, times `wrong`."""
    air = Air(np.random.default_rng(seed), PORTS, BEAMS, min_delay=receive_delay, **air_options)
    if change is not None:
        change(air)
    num = 256 + receive_delay
    layout = SlotLayout(num, 8, SoundingSymbol(128, 96, 32), 1, 8, receive_delay_samples=receive_delay)
    plan = Plan(tuple(PORTS), APS, "ue", PORTS, BEAMS, layout, air.samp_rate, 12, 4, repeats, random_starts, seed,
                **options or {})
    schedule = build_schedule(tuple(PORTS), num, plan.phases(8))
    roles = {node: VerificationRole(node, plan) for node in PORTS}
    verifier = Verifier(plan, schedule.slots)
    frequency = np.concatenate([[air.cfo_hz[ap] - air.cfo_hz["a"]] * PORTS[ap] for ap in APS])
    verifier.update(Product("sweep", {
        "c": air.c(APS, calibrated_at) * wrong * np.exp(-2j * air.theta("a", calibrated_at)),
        "frequency_hz": frequency, "delay_s": np.zeros(6), "reference_time": calibrated_at}))
    for phase in (TRAINING, UPLINK, DOWNLINK):
        if phase == DOWNLINK and downlink_noise is not None:
            air.noise_var = downlink_noise
        grants, results, start = run_phase(air, schedule, phase, roles, start)
        product = verifier.produce(phase, grants, results)
        if not product.trusted:
            return air, (verifier.report or {}) | {"reasons": product.reasons}
        for role in roles.values():
            role.update(product)
        verifier.update(product)
    return air, verifier.report


@pytest.mark.parametrize("options", [{}, {"cfo_hz": CFO}, {"cfo_hz": CFO, "max_delay": 9}])
def test_true_calibration_reaches_the_ideal_gain_without_noise(options):
    _, report = verify(**options)
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=2e-4 if not options else 5e-3)
    assert report["coherent_gain_db"] > 2.0


def test_ideal_gain_equals_that_of_the_true_channel():
    air, report = verify()
    best = {ap: np.argmax(np.sum(np.abs(air.h[ap, "ue"][:, :, 0, 0] * air.r[ap][:, None]) ** 2, axis=0)) for ap in APS}
    dl = {ap: air.t[ap] * air.h[ap, "ue"][:, best[ap], 0, 0] for ap in APS}
    power = np.array([np.sum(np.abs(h) ** 2) for h in dl.values()])
    assert report["ideal_gain_db"] == pytest.approx(10 * np.log10(power.sum() ** 2 / np.sum(power**2)), abs=0.01)
    scattered = np.sum(power**2) / power.sum()
    assert report["best_single_node_db"] == pytest.approx(10 * np.log10(power.max() / scattered), abs=0.01)
    assert report["joint_power_db"] == pytest.approx(10 * np.log10(power.sum() * np.abs(air.r["ue"][0]) ** 2), abs=0.01)


def test_conjugated_or_unturned_calibration_loses_the_gain():
    air, good = verify(cfo_hz=CFO)
    for wrong in (np.exp(1j * np.array([0, 2, 2, 2, -2, -2])), air.c(APS, 20_000).conj() / air.c(APS, 20_000)):
        _, report = verify(cfo_hz=CFO, wrong=wrong)
        assert report["coherent_gain_db"] < good["coherent_gain_db"] - 1.0


def test_calibration_of_another_time_loses_the_gain_when_oscillators_differ():
    _, good = verify(cfo_hz=CFO)
    air = Air(np.random.default_rng(3), PORTS, BEAMS, cfo_hz=CFO)
    turned = air.c(APS, 25_000) / air.c(APS, 20_000)  # 5 ms late
    _, report = verify(cfo_hz=CFO, wrong=turned)
    assert report["coherent_gain_db"] < good["coherent_gain_db"] - 1.0


def test_random_starts_average_to_no_gain():
    _, report = verify(random_starts=400, repeats=8)
    mean = 10 ** (report["uncalibrated_gain_db"] / 10)
    std = mean * report["uncalibrated_gain_std_db"] * np.log(10) / 10
    assert abs(mean - 1.0) < 3 * std


def test_coherent_gain_at_20_db_lies_within_a_tenth_of_a_decibel_of_the_ideal():
    _, report = verify(noise_var=0.01, cfo_hz=CFO)
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.1)


def test_ue_that_nobody_hears_is_named_and_not_used():
    _, report = verify(noise_var=1e6)
    assert "ue: too weak" in report["reasons"][0]


def test_ideal_gain_does_not_depend_on_the_calibration_that_is_verified():
    """Wrong phases, amplitudes and phases within a node change what is sent, not what would be best."""
    _, good = verify()
    ideal = good["joint_power_db"]
    for wrong in (np.array([1, 1, 1, 1, -1, -1]), np.array([3, 1, 1, 1, 0.3, 1]), np.array([1, -1, -1, 1, 1, 1])):
        _, report = verify(wrong=wrong)
        assert report["joint_power_db"] < ideal - 0.1
        assert report["ideal_gain_db"] - report["coherent_gain_db"] == pytest.approx(
            ideal - report["joint_power_db"], abs=0.02)


def test_joint_transmission_far_from_the_ideal_is_not_trusted():
    wrong = np.array([1, 1, 1, 1, -1, -1])
    _, bad = verify(wrong=wrong)
    assert bad["ideal_gain_db"] - bad["coherent_gain_db"] > 1.0
    assert "calibration does not hold" in bad["reasons"][0]
    for limit in (100.0, None):
        _, same = verify(wrong=wrong, options={"max_loss_db": limit})
        assert "reasons" not in same
        assert same["coherent_gain_db"] == bad["coherent_gain_db"]


def test_report_without_a_limit_keeps_the_doubts():
    """What would end the run is said in the report."""
    _, report = verify(downlink_noise=3000.0)
    assert any("does not receive it" in reason for reason in report["reasons"])
    _, report = verify(downlink_noise=3000.0, options={"max_loss_db": None})
    assert "reasons" not in report
    assert any("does not receive it" in doubt for doubt in report["doubts"])
    _, report = verify(options={"max_loss_db": None})
    assert report["doubts"] == []


def compressing(loss_db):
    """Change after which all ports of the APs lose so much at unit power: x - k x |x|^2."""
    k = 1 - 10 ** (-loss_db / 20)

    def change(air):
        linear = air.slot
        air.slot = lambda sent, *more: linear(
            {name: burst if burst is None or name not in APS else burst * (1 - k * np.abs(burst) ** 2)
             for name, burst in sent.items()}, *more)

    return change


@pytest.mark.parametrize("alone", ["port", "ap"])
def test_joint_transmission_above_the_ideal_is_a_doubt(alone):
    """One port, or the ports of one AP, at the power of all compress by more than all of them together."""
    for limit in (None, 1.0):
        options = {"max_loss_db": limit, "alone": alone}
        _, linear = verify(options=options, noise_var=0.01)
        assert linear["doubts"] == []
        _, report = verify(options=options, noise_var=0.01, change=compressing(2.0))
        excess_db = report["coherent_gain_db"] - report["ideal_gain_db"]
        assert excess_db > (1.0 if alone == "port" else 0.3)
        assert "reasons" not in report
        (doubt,) = report["doubts"]
        assert f"exceeds the ideal by {excess_db:.1f} dB" in doubt
        assert "amplifiers compress" in doubt
        assert ("port by port" in doubt) is (alone == "port")


def test_slight_compression_is_no_doubt_in_the_ideal():
    """Within a tenth of a decibel, though nothing hides it."""
    _, report = verify(options={"max_loss_db": None}, change=compressing(0.05))
    assert 0.01 < report["coherent_gain_db"] - report["ideal_gain_db"] < 0.1
    assert report["doubts"] == []


def test_noise_alone_is_no_doubt_in_the_ideal():
    """Some of 30 are above the ideal by chance, by more than would count without noise."""
    excess = []
    for seed in range(30):
        _, report = verify(seed, noise_var=1e-3, downlink_noise=3.0, repeats=2, random_starts=1,
                           options={"max_loss_db": None})
        excess.append(report["coherent_gain_db"] - report["ideal_gain_db"])
        assert not any("exceeds" in doubt for doubt in report["doubts"])
    assert max(excess) > 0.2


def test_aps_alone_show_the_same_gains_in_fewer_slots():
    for options in ({}, {"noise_var": 0.01, "cfo_hz": CFO}):
        _, ports = verify(**options)
        _, aps = verify(**options, options={"alone": "ap"})
        for key in ("coherent_gain_db", "ideal_gain_db", "best_single_node_db", "joint_power_db"):
            assert aps[key] == pytest.approx(ports[key], abs=0.05 if options else 1e-3)
    layout = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
    plans = [Plan(tuple(PORTS), APS, "ue", PORTS, BEAMS, layout, 1e6, 12, 4, 8, 40, 3, who) for who in ("port", "ap")]
    assert [len(plan.phases(8)[-1][2]) for plan in plans] == [8 * (1 + 6) + 40, 8 * (1 + 3) + 40]


def test_aps_alone_show_wrong_phases_between_aps_and_not_within():
    between, within = np.array([1, 1, 1, 1, -1, -1]), np.array([1, 1, 1, 1, 1, -1])
    _, good = verify(options={"alone": "ap"})
    _, bad = verify(wrong=between, options={"alone": "ap"})
    assert bad["ideal_gain_db"] == pytest.approx(good["ideal_gain_db"], abs=0.01)
    assert bad["coherent_gain_db"] < good["coherent_gain_db"] - 1.0
    _, hidden = verify(wrong=within, options={"alone": "ap"})
    _, shown = verify(wrong=within)

    def ideal_power_db(report):
        return report["joint_power_db"] + report["ideal_gain_db"] - report["coherent_gain_db"]

    assert ideal_power_db(shown) == pytest.approx(ideal_power_db(good), abs=0.02)
    assert ideal_power_db(hidden) < ideal_power_db(shown) - 0.3


def test_unknown_way_of_sending_alone_is_refused():
    with pytest.raises(ValueError, match="alone = 'node'"):
        verify(options={"alone": "node"})


def test_offset_common_to_all_nodes_costs_nothing_and_a_late_label_does():
    """1 kHz for all APs against the UE and 30 Hz between them: times that are labelled wrongly show."""
    far = {"a": 1020.0, "b": 955.0, "ue": 0.0, "c": 1031.0}
    _, report = verify(cfo_hz=far)
    assert report["ideal_gain_db"] - report["coherent_gain_db"] < 5e-3


def test_delay_common_to_all_links_beyond_the_prefix_costs_nothing():
    """300 Hz between APs turn by 0.2 rad in the delay: times taken at the wrong end would show."""
    far = {"a": 200.0, "b": -100.0, "ue": 50.0, "c": 150.0}
    _, report = verify(cfo_hz=far, receive_delay=100, max_delay=5)
    assert report["ideal_gain_db"] - report["coherent_gain_db"] < 5e-3


def port_amplitudes(air):
    """Amplitude at the UE of every port alone at unit power, with the beams that training chooses."""
    best = {ap: np.argmax(np.sum(np.abs(air.h[ap, "ue"][:, :, 0, 0] * air.r[ap][:, None]) ** 2, axis=0)) for ap in APS}
    h = [air.t[ap] * air.h[ap, "ue"][:, best[ap], 0, 0] for ap in APS]
    return np.abs(np.concatenate(h) * air.r["ue"][0])


@pytest.mark.parametrize("options", [{}, {"cfo_hz": CFO, "max_delay": 9}])
def test_amplitudes_of_cooperating_ports_add_up(options):
    """Every port at its own full power: (sum of amplitudes)^2; an entry has 96 / 128 of the noise of a sample."""
    numbers = (1, 2, 4, 6)
    air, report = verify(noise_var=1e-5, options={"cooperating": numbers}, **options)
    noise, rows = 1e-5 * 96 / 128, report["cooperation"]
    wanted = 20 * np.log10(np.cumsum(port_amplitudes(air))) - 10 * np.log10(noise)
    best = 20 * np.log10(np.maximum.accumulate(port_amplitudes(air))) - 10 * np.log10(noise)
    assert [row["ports"] for row in rows] == list(numbers)
    # The noise is known to 1 in sqrt(31 bins x 220 slots).
    offset = rows[0]["snr_db"] - wanted[0]
    assert abs(offset) < 4 * 10 / np.log(10) / np.sqrt(31 * 220)
    for row in rows:
        n = row["ports"] - 1
        assert row["ideal_snr_db"] - wanted[n] == pytest.approx(offset, abs=0.01)
        assert row["snr_db"] - wanted[n] == pytest.approx(offset, abs=0.02)
        assert row["best_port_snr_db"] - best[n] == pytest.approx(offset, abs=0.01)


def test_snr_of_equal_ports_rises_by_6_db_per_doubling():
    def equalise(air):
        for ap in APS:
            air.t[ap] = air.t[ap] / np.abs(air.t[ap])
            air.h[ap, "ue"] /= np.abs(air.h[ap, "ue"])  # the other direction is a view of the same array

    _, report = verify(noise_var=1e-3, options={"cooperating": (4, 1, 2)}, change=equalise)
    four, one, two = (row["snr_db"] for row in report["cooperation"])
    assert (two - one, four - two) == pytest.approx((20 * np.log10(2),) * 2, abs=0.05)


def test_cooperation_with_random_node_phases_adds_the_powers_of_the_nodes():
    """The ports of one node keep together. Within 3 standard errors of 64 random starts."""
    air, report = verify(noise_var=1e-5, repeats=64, random_starts=1, options={"cooperating": (1, 2, 6)})
    a = port_amplitudes(air)
    wanted = [a[0] ** 2, a[0] ** 2 + a[1] ** 2, a[0] ** 2 + np.sum(a[1:4]) ** 2 + np.sum(a[4:]) ** 2]
    for row, power in zip(report["cooperation"], wanted, strict=True):
        seen = 10 ** ((row["uncalibrated_snr_db"] - row["snr_db"]) / 10) * np.sum(a[: row["ports"]]) ** 2
        std = seen * row["uncalibrated_snr_std_db"] * np.log(10) / 10
        assert abs(seen - power) < 3 * std + 1e-3 * power
    assert report["cooperation"][2]["uncalibrated_snr_db"] < report["cooperation"][2]["snr_db"] - 1.0


def test_wrong_calibration_shows_where_the_wrong_port_joins():
    wrong = np.array([1, 1, 1, 1, -1, 1])
    _, report = verify(wrong=wrong, noise_var=1e-5, options={"cooperating": (4, 5), "max_loss_db": None})
    four, five = (row["ideal_snr_db"] - row["snr_db"] for row in report["cooperation"])
    assert abs(four) < 0.02
    assert five > 1.0


def test_cooperation_leaves_what_was_measured_before_as_it_is():
    _, plain = verify(cfo_hz=CFO)
    _, more = verify(cfo_hz=CFO, options={"cooperating": (3,)})
    assert "cooperation" not in plain
    for key in ("coherent_gain_db", "ideal_gain_db", "best_single_node_db"):
        assert more[key] == pytest.approx(plain[key], abs=5e-3)


@pytest.mark.parametrize("options", [{"cooperating": (0,)}, {"cooperating": (2, 7)},
                                     {"cooperating": (2,), "alone": "ap"}])
def test_impossible_cooperation_is_refused(options):
    with pytest.raises(ValueError, match="cooperating = "):
        verify(options=options)


TWO_WAYS = {"a": 2, "u": 1, "b": 1, "v": 3}
SIDES = {"": ("a", "b"), "ue_": ("u", "v")}


def coefficients(air, sample, wrong=1.0):
    """Values of a calibration product with the true coefficients of both sides, those of the UEs times `wrong`."""
    values = {}
    for key, names in SIDES.items():
        frequency = np.concatenate([[air.cfo_hz[name] - air.cfo_hz["a"]] * TWO_WAYS[name] for name in names])
        c = air.c(names, sample) * np.exp(-2j * air.theta("a", sample)) * (wrong if key else 1.0)
        values |= {f"{key}c": c, f"{key}frequency_hz": frequency, f"{key}delay_s": np.zeros(c.size),
                   f"{key}reference_time": sample}
    return values


def test_both_directions_in_one_schedule_each_take_their_own_latest_coefficients():
    """APs send to u, then UEs to b; the first coefficients of the UEs are wrong."""
    cfo = {"a": 20.0, "b": -45.0, "u": 31.0, "v": 50.0}
    air = Air(np.random.default_rng(3), TWO_WAYS, dict.fromkeys(TWO_WAYS, 1), cfo_hz=cfo)
    layout = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
    common = (TWO_WAYS, dict.fromkeys(TWO_WAYS, 1), layout, air.samp_rate, 12, 4, 8, 8, 5)
    nodes = tuple(TWO_WAYS)
    plans = [Plan(nodes, SIDES[""], "u", *common),
             Plan(nodes, SIDES["ue_"], "b", *common, max_loss_db=None, prefix="ul_", coefficients="ue_",
                  cooperating=(1, 4))]
    schedule = build_schedule(nodes, 256, [phase for plan in plans for phase in plan.phases(8)])
    assert [phase.name for phase in schedule.phases] == ["uplink", "downlink", "ul_uplink", "ul_downlink"]
    assert [{slot.transmitters[0] for slot in schedule.slots if slot.purpose == name} for name in
            ("uplink", "ul_uplink")] == [{"u"}, {"b"}]
    losses, start = [], 50_000
    verifiers = [Verifier(plan, schedule.slots) for plan in plans]
    members = {node: [VerificationRole(node, plan) for plan in plans] for node in nodes}
    for wrong in (np.array([1, 1, 1, -1]), 1.0):
        for verifier in verifiers:
            verifier.update(Product("exchange", coefficients(air, start - 30_000, wrong)))
        for phase in schedule.phases:
            which = [phase.name in verifier.phases for verifier in verifiers].index(True)
            roles = {node: both[which] for node, both in members.items()}
            assert all(phase.name in role.purposes for role in roles.values())
            grants, results, start = run_phase(air, schedule, phase.name, roles, start)
            product = verifiers[which].produce(phase.name, grants, results)
            assert product.trusted, product.reasons
            for other in (*verifiers, *(role for both in members.values() for role in both)):
                other.update(product)
        losses.append([v.report["ideal_gain_db"] - v.report["coherent_gain_db"] for v in verifiers])
    np.testing.assert_allclose([losses[0][0], *losses[1]], 0.0, atol=5e-3)
    assert losses[0][1] > 0.5
    assert [len(verifier.history) for verifier in verifiers] == [2, 2]


def test_uplink_without_its_coefficients_is_not_trusted():
    plan = Plan(("a", "u"), ("a",), "u", {"a": 1, "u": 1}, {"a": 1, "u": 1},
                SlotLayout(256, 8, SoundingSymbol(128, 96, 32)), 1e6, 12, 1, 1, 0, 1, coefficients="ue_")
    verifier = Verifier(plan, ())
    verifier.update(Product("exchange", {"c": np.ones(1), "delay_s": np.zeros(1), "frequency_hz": np.zeros(1),
                                         "reference_time": 0}))
    assert verifier.produce("uplink", (), {}).reasons == ("no calibration has come before the uplink",)


def test_beams_that_another_phase_chose_are_used_by_all_nodes():
    """Panels at both ends: what arrives is the channel of these beams, without a training of the plan's own."""
    beams, chosen = {"a": 3, "b": 2, "ue": 4, "c": 4}, {"a": 1, "b": 1, "ue": 2, "c": 3}
    air = Air(np.random.default_rng(8), PORTS, beams)
    layout = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
    plan = Plan(tuple(PORTS), APS, "ue", PORTS, beams, layout, 1e6, 12, 4, 8, 0, 3, beams_from="beam_training")
    schedule = build_schedule(tuple(PORTS), 256, plan.phases(8))
    assert [phase.name for phase in schedule.phases] == ["uplink", "downlink"]
    assert {beam for slot in schedule.slots for beam in slot.beams} == {CHOSEN}
    roles = {node: VerificationRole(node, plan) for node in PORTS}
    verifier = Verifier(plan, schedule.slots)
    verifier.update(Product("exchange", {"c": air.c(APS, 0), "frequency_hz": np.zeros(6), "delay_s": np.zeros(6),
                                         "reference_time": 0}))
    for role in roles.values():
        role.update(Product("beam_training", {"serving_beams": np.array([chosen[node] for node in PORTS])}))
    start = 50_000
    for phase in ("uplink", "downlink"):
        grants, results, start = run_phase(air, schedule, phase, roles, start)
        product = verifier.produce(phase, grants, results)
        assert product.trusted, product.reasons
        for role in roles.values():
            role.update(product)
    h = np.concatenate([air.t[ap] * air.h[ap, "ue"][:, chosen[ap], 0, chosen["ue"]] for ap in APS])
    wanted = 10 * np.log10(np.sum(np.abs(h * air.r["ue"][0]) ** 2))
    assert verifier.report["joint_power_db"] == pytest.approx(wanted, abs=0.01)

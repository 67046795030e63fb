# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols.multiuser import (
    DOWNLINK,
    TRAINING,
    UPLINK,
    MultiuserCollector,
    MultiuserPlan,
    MultiuserRole,
)
from gnuradio.dmimo.protocols.slots import Product, build_schedule

PORTS = {"a": 2, "u": 1, "b": 3, "v": 2}
BEAMS = dict.fromkeys(PORTS, 1)
APS, UES = ("a", "b"), ("u", "v")
CFO = {"a": 20.0, "b": -45.0, "u": 50.0, "v": -80.0}
LAYOUT = SlotLayout(256, 8, SoundingSymbol(128, 96, 32), 1, 8)
BETWEEN = np.exp(1j * np.array([0, 0, 0.3, 0.3, 0.3]))  # c of the second AP 0.3 rad off
NOISE = 1e-3


def make_plan(ues=UES, ports=PORTS, beams=BEAMS, *, uplink_repeats=4, repeats=4, random_starts=0, **options):
    return MultiuserPlan(tuple(ports), APS, ues, ports, beams, LAYOUT, 1e6, uplink_repeats, repeats, random_starts, 7,
                         **options)


def run(seed=3, *, wrong=1.0, plan=None, start=50_000, calibrated_at=20_000, change=None, trusted=True, products=None,
        downlink_noise=None, **air_options):
    """Air, report and last product of a run with the true calibration of an earlier time, times `wrong`."""
    plan = plan or make_plan()
    air = Air(np.random.default_rng(seed), plan.num_ports, plan.num_beams, **air_options)
    if change is not None:
        change(air)
    schedule = build_schedule(plan.nodes, 256, plan.phases(8))
    roles = {node: MultiuserRole(node, plan) for node in plan.nodes}
    collector = MultiuserCollector(plan, schedule.slots)
    frequency = np.concatenate([[air.cfo_hz[ap] - air.cfo_hz["a"]] * plan.num_ports[ap] for ap in APS])
    collector.update(Product("sweep", {
        "c": air.c(APS, calibrated_at) * wrong * np.exp(-2j * air.theta("a", calibrated_at)),
        "frequency_hz": frequency, "delay_s": np.zeros(frequency.size), "reference_time": calibrated_at}))
    for phase in schedule.phases:
        if phase.name == DOWNLINK and downlink_noise is not None:
            air.noise_var = downlink_noise
        grants, results, start = run_phase(air, schedule, phase.name, roles, start)
        product = collector.produce(phase.name, grants, results)
        assert product.trusted or not trusted, product.reasons
        if products is not None:
            products.append(product)
        if not product.trusted:
            break
        for role in roles.values():
            role.update(product)
        collector.update(product)
    return air, collector.report, product


def suppression_db(report):
    """Measured, or that of the least leakage that would have shown, where there is none."""
    return [user["signal_db"] - user["leakage_floor_db"] if user["suppression_db"] is None else user["suppression_db"]
            for user in report["users"].values()]


@pytest.mark.parametrize("options", [{}, {"cfo_hz": CFO}, {"cfo_hz": CFO, "max_delay": 9}])
def test_true_calibration_leaves_less_than_minus_60_db_of_other_streams_without_noise(options):
    _, report, _ = run(**options)
    assert min(suppression_db(report)) > 60
    for user in report["users"].values():
        assert user["superposed_sinr_db"] > 50


def test_signal_power_is_that_of_zero_forcing_weights_for_the_true_channel():
    """Every UE receives the same stream amplitude, times its own r: from the definition, by the pseudo-inverse."""
    air, report, _ = run()
    h = np.stack([np.concatenate([air.t[ap] * air.h[ap, ue][:, 0, 0, 0] for ap in APS]) for ue in UES])
    # Estimates of the uplink carry the UE's t, which scales its row: equal amplitudes hold in those units.
    seen = h * np.array([[air.t[ue][0]] for ue in UES])
    weights = np.linalg.pinv(seen)
    weights /= np.linalg.norm(weights)
    for k, ue in enumerate(UES):
        wanted = np.abs(air.r[ue][0] * h[k] @ weights[:, k]) ** 2
        assert report["users"][ue]["signal_db"] == pytest.approx(10 * np.log10(wanted), abs=0.01)
    singular = np.linalg.svd(seen / np.linalg.norm(seen, axis=1, keepdims=True), compute_uv=False)
    assert report["condition_number"] == pytest.approx(singular[0] / singular[-1], rel=1e-3)


def test_wrong_phase_between_aps_leaks_as_the_channel_says():
    air, report, _ = run(wrong=BETWEEN)
    h = np.stack([np.concatenate([air.t[ap] * air.h[ap, ue][:, 0, 0, 0] for ap in APS]) for ue in UES])
    weights = np.linalg.pinv(h * np.array([[air.t[ue][0]] for ue in UES]) * BETWEEN)
    received = np.abs(h @ weights) ** 2
    wanted = 10 * np.log10([received[0, 0] / received[0, 1], received[1, 1] / received[1, 0]])
    assert max(wanted) < 30
    np.testing.assert_allclose(suppression_db(report), wanted, atol=0.01)
    for ratio, user in zip(wanted, report["users"].values(), strict=True):
        assert user["superposed_sinr_db"] == pytest.approx(ratio, abs=0.1)


@pytest.mark.parametrize("what", ["conjugate", "unturned", "another time"])
def test_calibration_with_a_wrong_sign_or_time_leaks(what):
    air = Air(np.random.default_rng(3), PORTS, BEAMS, cfo_hz=CFO)
    c = air.c(APS, 20_000)
    wrong = {"conjugate": c.conj() / c, "unturned": 1 / c, "another time": air.c(APS, 21_000) / c}[what]
    _, report, _ = run(wrong=wrong, cfo_hz=CFO)
    assert max(suppression_db(report)) < 30


def test_leakage_from_noise_is_as_predicted():
    """Noise in the uplink alone: the mean ratio to the prediction is 1 within three standard errors of 1.4 %."""
    plan, ratios = make_plan(uplink_repeats=2, repeats=1), []
    for seed in range(40):
        _, report, _ = run(seed, plan=plan, noise_var=1e-4, downlink_noise=0.0, cfo_hz=CFO)
        predicted = np.array(report["predicted_suppression_db"])
        ratios.extend(10 ** ((predicted - suppression_db(report)) / 10))
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    assert error < 0.02
    assert abs(np.mean(ratios) - 1) < 3 * error


def test_leakage_is_measured_without_bias_below_the_noise():
    """Leakage 7 dB below the UE's noise, within 3 standard errors of the prediction (400 runs: 1.007 +- 0.013)."""
    ratios = []
    for seed in range(100, 140):
        _, report, _ = run(seed, plan=make_plan(uplink_repeats=2, repeats=8), noise_var=1e-4)
        for user, predicted in zip(report["users"].values(), report["predicted_suppression_db"], strict=True):
            (leak,) = user["leakage_db"].values()
            leak = 0.0 if leak is None else 10 ** (leak / 10)
            ratios.append(leak / 10 ** ((user["signal_db"] - predicted) / 10))
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    assert error < 0.1
    assert abs(np.mean(ratios) - 1) < 3 * error


def test_superposed_streams_show_the_same_sinr_as_streams_one_after_another():
    for wrong in (1.0, BETWEEN):
        _, report, _ = run(wrong=wrong, noise_var=NOISE, cfo_hz=CFO, plan=make_plan(repeats=16))
        for user in report["users"].values():
            assert user["superposed_sinr_db"] == pytest.approx(user["sinr_db"], abs=0.4)


def test_noise_and_snr_are_those_of_the_ue():
    """Channel entries have the noise of K / N of a sample's, 96 of 128 bins; sigma of the mean 0.06 dB."""
    _, report, _ = run(noise_var=NOISE, plan=make_plan(repeats=16))
    for user in report["users"].values():
        assert user["noise_db"] == pytest.approx(10 * np.log10(NOISE * 96 / 128), abs=0.2)
        assert user["snr_db"] == pytest.approx(user["signal_db"] - user["noise_db"], abs=1e-9)
        assert user["sinr_db"] <= user["snr_db"]


def test_random_node_phases_cost_most_of_the_spectral_efficiency():
    _, report, product = run(noise_var=NOISE, cfo_hz=CFO, plan=make_plan(random_starts=12))
    assert report["uncalibrated_spectral_efficiency_bps_hz"] < 0.7 * report["spectral_efficiency_bps_hz"]
    assert report["spectral_efficiency_bps_hz"] < report["leakage_free_spectral_efficiency_bps_hz"]
    total = sum(np.log2(1 + 10 ** (user["sinr_db"] / 10)) for user in report["users"].values())
    assert report["spectral_efficiency_bps_hz"] == pytest.approx(total)
    np.testing.assert_allclose(product.values["sinr_db"], [user["sinr_db"] for user in report["users"].values()])


def test_methods_trade_signal_for_leakage():
    reports = {method: run(noise_var=NOISE, plan=make_plan(method=method, regularisation=0.1))[1]
               for method in ("zero_forcing", "regularised_zero_forcing", "mrt")}
    leak = [max(value for user in report["users"].values() for value in user["leakage_db"].values() if value)
            for report in reports.values()]
    assert leak[0] < leak[1] < leak[2]
    signal = [sum(10 ** (user["signal_db"] / 10) for user in report["users"].values()) for report in reports.values()]
    assert signal[0] < signal[1] < signal[2]


def test_beam_of_every_ap_serves_all_ues():
    beams = {"a": 3, "u": 1, "b": 2, "v": 1}

    def dim(air):
        for ap, good in (("a", 2), ("b", 1)):
            for ue in UES:
                for beam in range(beams[ap]):
                    if beam != good:
                        air.h[ap, ue][:, beam] *= 0.1  # the other direction is a view of the same array

    products = []
    _, report, _ = run(plan=make_plan(beams=beams), noise_var=1e-6, cfo_hz=CFO, change=dim, products=products)
    assert products[0].phase == TRAINING
    np.testing.assert_array_equal(products[0].values["beams"], [2, 1])
    assert min(suppression_db(report)) > 40


def test_three_ues_with_two_ports_each_get_their_streams_from_two_aps():
    ports = {"a": 2, "u": 2, "b": 2, "v": 2, "w": 2}
    plan = make_plan(("w", "u", "v"), ports, dict.fromkeys(ports, 1))
    _, report, _ = run(plan=plan, cfo_hz=CFO | {"w": 300.0})
    assert list(report["users"]) == ["w", "u", "v"]
    assert min(suppression_db(report)) > 60
    assert all(len(user["leakage_db"]) == 2 for user in report["users"].values())


def test_two_plans_in_one_schedule_take_their_own_coefficients_and_beams_chosen_elsewhere():
    """APs serve two UEs, then the UEs send two streams to two of the APs, all of them through panels."""
    beams, chosen = {"a": 2, "u": 3, "b": 2, "v": 2}, {"a": 1, "u": 2, "b": 0, "v": 1}
    air = Air(np.random.default_rng(9), PORTS, beams, cfo_hz=CFO)
    nodes = tuple(PORTS)
    common = (PORTS, beams, LAYOUT, 1e6, 4, 4, 0, 7)
    plans = [MultiuserPlan(nodes, APS, UES, *common, beams_from="chosen"),
             MultiuserPlan(nodes, UES, APS, *common, beams_from="chosen", prefix="ul_", coefficients="ue_")]
    schedule = build_schedule(nodes, 256, [phase for plan in plans for phase in plan.phases(8)])
    assert [phase.name for phase in schedule.phases] == [UPLINK, DOWNLINK, f"ul_{UPLINK}", f"ul_{DOWNLINK}"]
    collectors = [MultiuserCollector(plan, schedule.slots) for plan in plans]
    members = {node: [MultiuserRole(node, plan) for plan in plans] for node in nodes}
    values = {}
    for key, names in (("", APS), ("ue_", UES)):
        frequency = np.repeat([CFO[name] - CFO["a"] for name in names], [PORTS[name] for name in names])
        c = air.c(names, 20_000) * np.exp(-2j * air.theta("a", 20_000))
        values |= {f"{key}c": c, f"{key}frequency_hz": frequency, f"{key}delay_s": np.zeros(c.size),
                   f"{key}reference_time": 20_000}

    def publish(product):
        for member in (*collectors, *(role for both in members.values() for role in both)):
            member.update(product)

    publish(Product("chosen", {"serving_beams": np.array([chosen[node] for node in nodes])}))
    publish(Product("exchange", values))
    start = 50_000
    for phase in schedule.phases:
        which = [phase.name in collector.phases for collector in collectors].index(True)
        roles = {node: both[which] for node, both in members.items()}
        grants, results, start = run_phase(air, schedule, phase.name, roles, start)
        product = collectors[which].produce(phase.name, grants, results)
        assert product.trusted, product.reasons
        publish(product)
    assert min(suppression_db(collectors[0].report) + suppression_db(collectors[1].report)) > 60
    assert [len(collector.history) for collector in collectors] == [1, 1]
    # Streams of the first plan through the channel of the chosen beams.
    h = np.stack([np.concatenate([air.t[ap] * air.h[ap, ue][:, chosen[ap], 0, chosen[ue]] for ap in APS])
                  for ue in UES])
    weights = np.linalg.pinv(h * np.array([[air.t[ue][0]] for ue in UES]))
    wanted = np.abs(air.r["u"][0] * h[0] @ weights[:, 0] / np.linalg.norm(weights)) ** 2
    assert collectors[0].report["users"]["u"]["signal_db"] == pytest.approx(10 * np.log10(wanted), abs=0.01)


def silence(ue, gain):
    def change(air):
        air.t[ue] = air.t[ue] * gain
    return change


def test_ue_that_the_aps_do_not_hear_is_named():
    _, report, product = run(noise_var=NOISE, change=silence("v", 1e-5), trusted=False)
    assert report is None
    assert product.phase == UPLINK
    assert len(product.reasons) == 1
    assert "node v: too weak" in product.reasons[0]


def test_ue_that_does_not_hear_its_stream_is_named():
    def deaf(air):
        air.r["u"] = air.r["u"] * 1e-6
    _, _, product = run(noise_var=NOISE, change=deaf, trusted=False)
    assert product.phase == DOWNLINK
    assert product.reasons == ("node u: does not receive its stream",)


def alike(air):
    for ap in APS:
        air.h[ap, "v"][:, 0, 0, 0] = air.h[ap, "u"][:, 0, 0, 0] * np.exp(0.4j)
        air.h[ap, "v"][0, 0, 0, 0] *= 1.001


def test_ues_that_cannot_be_separated_are_named_and_served_by_mrt_all_the_same():
    _, _, product = run(noise_var=1e-6, change=alike, trusted=False)
    assert product.phase == UPLINK
    assert "node u: its channel is too much like that of v" in product.reasons[0]
    _, report, product = run(noise_var=1e-6, change=alike, plan=make_plan(method="mrt"))
    assert product.trusted
    assert max(suppression_db(report)) < 3


def test_suppression_below_the_limit_is_not_trusted():
    _, report, product = run(noise_var=NOISE, wrong=BETWEEN, plan=make_plan(min_suppression_db=40.0), trusted=False)
    assert product.phase == DOWNLINK
    assert "dB below its own, less than 40 dB: calibration does not hold" in product.reasons[0]
    assert report["users"]
    assert run(noise_var=NOISE, wrong=BETWEEN, plan=make_plan(min_suppression_db=1.0))[2].trusted


def test_uplink_without_a_calibration_is_not_trusted():
    plan = make_plan()
    collector = MultiuserCollector(plan, ())
    assert collector.produce(UPLINK, (), {}).reasons == ("no calibration has come before the uplink",)


def test_schedule_holds_every_stream_alone_all_at_once_and_with_random_phases():
    (uplink, _, first), (downlink, _, second) = make_plan(repeats=3, random_starts=5).phases(8)
    assert (uplink, downlink) == (UPLINK, DOWNLINK)
    assert [slot.transmitters for slot in first] == [("u",), ("v",)] * 4
    assert {slot.transmitters for slot in second} == {APS}
    variants = [slot.variant for slot in second]
    assert [variants.count(k) for k in range(3)] == [3, 3, 3]
    assert sorted(v for v in variants if v > 2) == list(range(3, 13))
    assert make_plan(beams=dict.fromkeys(PORTS, 2)).phases(8)[0][0] == TRAINING


@pytest.mark.parametrize(("options", "text"), [
    ({"ues": ()}, "ues"), ({"ues": ("a",)}, "ues"), ({"method": "best"}, "method = 'best'"),
    ({"repeats": 0}, "repeats = 0"), ({"regularisation": 0.0}, "regularisation"), ({"max_condition": 1.0}, "max_con")])
def test_bad_plans_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        make_plan(**options)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler's state machine, driven by tables of events."""

import pytest
from gnuradio.dmimo.protocols.scheduler import Finished, PhaseDone, Publish, Release, SlotScheduler
from gnuradio.dmimo.protocols.slots import Grant, Product, Slot, build_schedule

NODES = ("a", "b")


def make(windows=(1,), count=3, **options):
    slots = [Slot(0, "sweep", ("a",), (0, 0)) for _ in range(count)]
    schedule = build_schedule(NODES, 100, [(f"phase{k}", window, slots) for k, window in enumerate(windows)])
    return schedule, SlotScheduler(schedule, **options)


def begin(schedule, machine):
    assert machine.ready("a", schedule.hash) == []
    return machine.ready("b", schedule.hash)


def complete(machine, actions, fail=None):
    """Acknowledge every released grant by both nodes; `fail(grant)` gives the status of node b."""
    seen = []
    while actions and isinstance(actions[0], Release):
        grants = actions[0].grants
        seen += grants
        actions = []
        for grant in grants:
            machine.acknowledge("a", [grant])
            actions = machine.acknowledge("b", [grant], fail(grant) if fail else "ok") or actions
    return seen, actions


def test_lock_step_releases_one_slot_at_a_time_and_ends_in_success():
    schedule, machine = make()
    actions = begin(schedule, machine)
    assert len(actions[0].grants) == 1
    seen, actions = complete(machine, actions)
    assert [(g.slot, g.attempt, g.start) for g in seen] == [(0, 0, 0), (1, 0, 100), (2, 0, 200)]
    assert actions == [PhaseDone("phase0", tuple(seen))]
    product = Product("phase0", {})
    assert machine.produced(product) == [Publish(product)]
    assert machine.product_acknowledged("a", "phase0") == []
    assert machine.product_acknowledged("b", "phase0") == [Finished(None)]


def test_next_phase_waits_for_every_node_to_take_the_product():
    schedule, machine = make(windows=(4, 4))
    _, actions = complete(machine, begin(schedule, machine))
    machine.produced(Product("phase0", {}))
    assert machine.product_acknowledged("a", "phase0") == []
    assert machine.product_acknowledged("a", "phase0") == []
    actions = machine.product_acknowledged("b", "phase0")
    assert actions[0].grants[0].slot == 3


def test_failed_slot_of_an_open_loop_phase_is_repeated_at_its_end_whatever_the_order_of_acknowledgements():
    starts = []
    for order in (1, -1):
        schedule, machine = make(windows=(8,), count=4)
        grants = begin(schedule, machine)[0].grants
        actions = []
        for grant in grants[::order]:
            machine.acknowledge("a", [grant])
            actions = machine.acknowledge("b", [grant], "lost" if grant.slot == 1 else "ok") or actions
        starts.append([(g.slot, g.attempt, g.start) for g in actions[0].grants])
    assert starts[0] == starts[1] == [(1, 1, 400)]


def test_failed_slot_in_lock_step_is_repeated_at_once():
    schedule, machine = make()
    seen, _ = complete(machine, begin(schedule, machine), lambda g: "lost" if (g.slot, g.attempt) == (1, 0) else "ok")
    assert [(g.slot, g.attempt) for g in seen] == [(0, 0), (1, 0), (1, 1), (2, 0)]


def test_too_many_attempts_end_the_run_with_node_slot_and_reason():
    schedule, machine = make(max_attempts=2)
    _, actions = complete(machine, begin(schedule, machine), lambda g: "lost" if g.slot == 1 else "ok")
    assert actions == [Finished("slot 1 (sweep) failed in 2 attempts: node b: lost")]
    assert machine.acknowledge("a", [Grant(2, 0, 0)]) == []


def test_late_and_repeated_acknowledgements_change_nothing():
    schedule, machine = make()
    begin(schedule, machine)
    assert machine.acknowledge("a", [Grant(0, 0, 0)]) == machine.acknowledge("a", [Grant(0, 0, 0)]) == []
    machine.acknowledge("b", [Grant(0, 0, 0)], "lost")
    assert machine.acknowledge("b", [Grant(0, 0, 0)]) == []  # attempt 0 is over
    assert machine.acknowledge("b", [Grant(7, 0, 0)]) == []
    assert machine.completed == 0


def test_attempts_acknowledged_together_are_as_if_one_after_the_other():
    schedule, machine = make(windows=(6,), count=6)
    first = begin(schedule, machine)[0].grants
    machine.acknowledge("a", first)
    assert machine.acknowledge("b", first[:2]) == []
    assert machine.completed == 2
    machine.acknowledge("b", first[2:3], "lost")
    (release,) = machine.acknowledge("b", first)  # those of before once more, and the rest
    assert machine.completed == 5
    assert release.grants == (Grant(2, 1, 600),)


def test_lost_acknowledgement_is_retried_then_ends_the_run():
    schedule, machine = make(max_attempts=2)
    begin(schedule, machine)
    machine.acknowledge("a", [Grant(0, 0, 0)])
    assert machine.timed_out()[0].grants[0].attempt == 1
    machine.acknowledge("a", [Grant(0, 1, 0)])
    error = machine.timed_out()[0].error
    assert "slot 0" in error
    assert "node b: no acknowledgement" in error


def test_what_comes_of_an_attempt_that_was_given_up_changes_nothing():
    schedule, machine = make(windows=(4,))
    first = begin(schedule, machine)[0].grants
    machine.acknowledge("a", first)
    machine.acknowledge("b", first[:1], "lost")  # slot 0: over, to be repeated
    second = machine.timed_out()[0].grants
    assert [(grant.slot, grant.attempt) for grant in second] == [(grant.slot, 1) for grant in first]
    assert machine.acknowledge("b", first) == []
    assert machine.completed == 0
    machine.acknowledge("a", second)
    (done,) = machine.acknowledge("b", second)
    assert done.grants == second  # no failure of the first attempts is left


def test_node_that_does_not_answer_is_named_with_the_slot():
    schedule, machine = make(windows=(4,))
    begin(schedule, machine)
    error = machine.timed_out({"b"})[0].error
    assert "node b stopped answering: slot 0 (sweep)" in error


@pytest.mark.parametrize("stage", ["ready", "results", "product"])
def test_every_wait_has_an_end(stage):
    schedule, machine = make()
    if stage != "ready":
        complete(machine, begin(schedule, machine))
    if stage == "product":
        machine.produced(Product("phase0", {}))
        machine.product_acknowledged("a", "phase0")
    (finished,) = machine.timed_out()
    assert {"ready": "no ready message from node a", "results": "no product",
            "product": "not acknowledged by node b"}[stage] in finished.error


def test_another_schedule_is_refused():
    _, machine = make()
    assert "node a holds another schedule" in machine.ready("a", "0" * 64)[0].error


def test_untrusted_product_is_not_applied_and_ends_the_run_with_its_reasons():
    schedule, machine = make()
    complete(machine, begin(schedule, machine))
    actions = machine.produced(Product("phase0", {}, False, ("port a:0 hears nothing",)))
    assert actions == [Finished("phase phase0: not trusted: port a:0 hears nothing")]


def test_open_loop_keeps_a_window_in_flight():
    schedule, machine = make(windows=(4,), count=12)
    actions = begin(schedule, machine)
    assert len(actions[0].grants) == 4
    in_flight = list(actions[0].grants)
    most = 0
    while in_flight:
        most = max(most, len(in_flight))
        grant = in_flight.pop(0)
        machine.acknowledge("a", [grant])
        for action in machine.acknowledge("b", [grant]):
            if isinstance(action, Release):
                in_flight += action.grants
    assert most == 4
    assert machine.completed == 12


def test_schedule_rejects_slots_that_do_not_fit():
    with pytest.raises(ValueError, match="not among the nodes"):
        build_schedule(NODES, 100, [("p", 1, [Slot(0, "x", ("c",), (0, 0))])])
    with pytest.raises(ValueError, match="one per node"):
        build_schedule(NODES, 100, [("p", 1, [Slot(0, "x", ("a",), (0,))])])
    with pytest.raises(ValueError, match="max_attempts = 0"):
        make(max_attempts=0)


def test_schedule_hash_depends_on_every_field():
    base, _ = make()
    other, _ = make(count=4)
    beams = build_schedule(NODES, 100, [("phase0", 1, [Slot(0, "sweep", ("a",), (0, 1))] * 3)])
    again, _ = make()
    assert len({base.hash, other.hash, beams.hash}) == 3
    assert base.hash == again.hash


def test_idle_samples_come_before_a_lock_step_repeat_and_after_a_phase():
    schedule, machine = make(windows=(1, 1), count=2, guard_samples=7)
    seen, _ = complete(machine, begin(schedule, machine), lambda g: "lost" if (g.slot, g.attempt) == (0, 0) else "ok")
    assert [g.start for g in seen] == [0, 107, 207]
    machine.produced(Product("phase0", {}))
    machine.product_acknowledged("a", "phase0")
    assert machine.product_acknowledged("b", "phase0")[0].grants[0].start == 314


def cycled(paced=()):
    """A schedule with a first phase "start" and a cycle of "a" and "b", one slot each."""
    def slot():
        return Slot(0, "sweep", ("ap1",), (0,))

    return build_schedule(("ap1",), 100, [("start", 1, [slot()])], [("a", 1, [slot()]), ("b", 1, [slot()])], paced)


def walk(machine, schedule, pace=None, fail=()):
    """Let a machine run without a hitch except for the attempts in `fail`; returns its grants and its end."""
    actions, grants = machine.ready("ap1", schedule.hash), []
    while not isinstance(actions[-1], Finished):
        match actions[-1]:
            case Release(released):
                (grant,) = released
                grants.append(grant)
                status = "lost" if (grant.slot, grant.attempt) in fail else "ok"
                actions = machine.acknowledge("ap1", [grant], status)
            case PhaseDone(phase, _):
                actions = machine.produced(Product(phase, {}, pace_samples=pace))
            case Publish(product):
                actions = machine.product_acknowledged("ap1", product.phase)
    return grants, actions[-1].error


def test_a_cycle_is_repeated_until_its_time_is_over_and_every_attempt_has_its_own_name():
    schedule = cycled()
    grants, error = walk(SlotScheduler(schedule, until_sample=450), schedule)
    assert error is None
    assert [grant.slot for grant in grants] == [0, 1, 2, 1, 2]
    assert [grant.start for grant in grants] == [0, 100, 200, 300, 400]
    assert len({(grant.slot, grant.attempt) for grant in grants}) == len(grants)


def test_a_paced_phase_begins_the_pace_after_the_last_paced_one():
    schedule = cycled(paced=(1,))
    grants, _ = walk(SlotScheduler(schedule, until_sample=1500), schedule, pace=1000)
    assert [grant.start for grant in grants] == [0, 100, 1000, 1100, 2000]


def test_each_cycle_has_all_its_attempts():
    schedule = cycled()
    machine = SlotScheduler(schedule, max_attempts=2, until_sample=600)
    grants, error = walk(machine, schedule, fail={(1, 0), (1, 2)})
    assert error is None
    assert [(grant.slot, grant.attempt) for grant in grants] == [(0, 0), (1, 0), (1, 1), (2, 0), (1, 2), (1, 3), (2, 1)]
    _, error = walk(SlotScheduler(schedule, max_attempts=2, until_sample=600), schedule, fail={(1, 1), (1, 2)})
    assert "slot 1" in error
    assert "2 attempts" in error


def test_a_slot_is_complete_only_when_every_port_of_its_sender_has_sent():
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 2, "b": 1})
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        assert machine.acknowledge(node, [first, second]) == []
    assert machine.sent("b", 0, 50) == []  # it was silent
    assert machine.sent("a", 0, first.start + 60) == []
    assert machine.sent("a", 1, first.start + 60) == []
    assert machine.completed == 1
    assert machine.sent("a", 1, second.start + 1000) == []  # of another attempt
    assert machine.sent("a", 1, None) == []
    assert machine.sent("a", 1, second.start + 100) == []
    assert machine.sent("a", 0, second.start + 100) == [PhaseDone("phase0", (first, second))]


@pytest.mark.parametrize("late", [0, 25])
def test_ends_of_bursts_that_are_stamped_late_are_those_of_the_bursts_in_their_order(late):
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 1})
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        machine.acknowledge(node, [first, second])
    assert machine.sent("a", 0, first.start + 100 + late) == []
    assert machine.completed == 1
    assert machine.sent("a", 0, second.start + 100 + late) == [PhaseDone("phase0", (first, second))]


def test_the_end_of_a_burst_is_not_taken_for_that_of_the_one_before():
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 1})
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        machine.acknowledge(node, [first, second])
    machine.sent("a", 0, second.start + 100)
    assert machine.timed_out()[0].grants == (Grant(first.slot, 1, 200),)


@pytest.mark.parametrize("found_at", [None, 0, 70, 1000])
def test_a_burst_that_was_not_sent_is_repeated_whenever_that_is_found(found_at):
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 1})
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        machine.acknowledge(node, [first, second])
    assert machine.sent("a", 0, found_at, "late") == []
    (release,) = machine.sent("a", 0, second.start + 60)
    assert release.grants == (Grant(first.slot, 1, 200),)


def test_a_confirmation_that_is_lost_is_repeated_and_then_ends_the_run_with_the_port():
    schedule, machine = make(count=1, max_attempts=2, confirmed={"a": 2})
    for attempt in range(2):
        (release,) = machine.timed_out() if attempt else begin(schedule, machine)
        for node in NODES:
            machine.acknowledge(node, release.grants)
        machine.sent("a", 0, release.grants[0].start + 1)
    (end,) = machine.timed_out()
    assert "node a sending on port 1: no acknowledgement" in end.error


def test_slots_are_released_with_the_lead_that_a_radio_needs():
    schedule, machine = make(windows=(2,), count=4, lead_samples=100)
    machine.time(900)
    grants = begin(schedule, machine)[0].grants
    assert [grant.start for grant in grants] == [1000, 1100]
    machine.time(4900)
    machine.acknowledge("a", grants)
    (release,) = machine.acknowledge("b", grants)
    assert [grant.start for grant in release.grants] == [5000, 5100]
    assert machine.end_sample == 5200


def lock_step(**options):
    """A lock-step phase of three slots of node a, whose radio confirms the bursts of its two ports."""
    schedule, machine = make(confirmed={"a": 2}, **options)
    return machine, begin(schedule, machine)


def received(machine, actions):
    """Both nodes have received the one slot released; returns its grant and what follows."""
    (grant,) = actions[0].grants
    machine.acknowledge("a", [grant])
    return grant, machine.acknowledge("b", [grant])


def confirmed(machine, grant, ports=(0, 1)):
    actions = []
    for port in ports:
        actions += machine.sent("a", port, grant.start + 100)
    return actions


def test_a_lock_step_phase_goes_on_without_confirmations_and_ends_only_with_all_of_them():
    machine, actions = lock_step()
    grants = []
    for _ in range(3):
        grant, actions = received(machine, actions)
        grants.append(grant)
    assert [grant.slot for grant in grants] == [0, 1, 2]
    assert actions == []
    assert confirmed(machine, grants[2]) == confirmed(machine, grants[0]) == []  # in any order
    assert confirmed(machine, grants[1], [0]) == []
    assert confirmed(machine, grants[1], [1]) == [PhaseDone("phase0", tuple(grants))]


@pytest.mark.parametrize("when", ["while the next slot is in flight", "when all slots are received"])
def test_a_lock_step_phase_is_repeated_as_a_whole_where_a_burst_was_not_sent(when):
    machine, actions = lock_step()
    first, actions = received(machine, actions)
    if when == "when all slots are received":
        _, actions = received(machine, actions)
        _, actions = received(machine, actions)
        actions = machine.sent("a", 1, first.start + 3, "underflow")
    else:
        assert machine.sent("a", 1, first.start + 3, "underflow") == []
        _, actions = received(machine, actions)
    assert machine.completed == 0
    grants = []
    for slot in range(3):
        grant, actions = received(machine, actions)
        assert (grant.slot, grant.attempt) == (slot, 1 if slot < 2 or when.startswith("when") else 0)
        grants.append(grant)
        assert machine.sent("a", 0, first.start + 100) == []  # of what is over
    assert [action for grant in grants for action in confirmed(machine, grant)] == [PhaseDone("phase0", tuple(grants))]


def test_a_lock_step_phase_that_is_spoiled_too_often_ends_the_run_with_node_port_slot_and_reason():
    machine, actions = lock_step(max_attempts=2)
    for _ in range(2):
        first, actions = received(machine, actions)
        second, actions = received(machine, actions)
        confirmed(machine, first)
        machine.sent("a", 1, second.start + 3, "too late")
        _, actions = received(machine, actions)
    assert actions == [Finished("slot 1 (sweep) failed in 2 attempts: node a sending on port 1: too late")]


def test_a_confirmation_that_never_comes_repeats_the_lock_step_phase_and_then_ends_the_run():
    machine, actions = lock_step(max_attempts=2)
    for _ in range(2):
        for _ in range(3):
            grant, actions = received(machine, actions)
            confirmed(machine, grant, [0] if grant.slot == 1 else [0, 1])
        actions = machine.timed_out()
    assert actions == [Finished("slot 1 (sweep) failed in 2 attempts: node a sending on port 1: no acknowledgement")]


def test_a_slot_in_lock_step_that_is_received_badly_is_repeated_alone_and_only_its_last_burst_counts():
    machine, actions = lock_step()
    first, actions = received(machine, actions)
    (bad,) = actions[0].grants
    machine.acknowledge("a", [bad])
    second, actions = received(machine, machine.acknowledge("b", [bad], "lost"))
    assert (second.slot, second.attempt) == (1, 1)
    third, actions = received(machine, actions)
    assert bad.attempt == 0  # its burst is never confirmed
    done = [action for grant in (first, second, third) for action in confirmed(machine, grant)]
    assert done == [PhaseDone("phase0", (first, second, third))]


def test_what_is_said_of_bursts_before_an_attempt_was_released_is_not_about_it():
    machine, actions = lock_step(reactive_lead_samples=1000, early_samples=500)
    machine.time(10000)
    first, actions = received(machine, actions)
    machine.time(20000)
    machine.sent("a", 0, first.start + 5, "late")
    machine.time(30000)
    again, actions = received(machine, received(machine, actions)[1])
    assert again.slot == 0
    assert again.start >= 31000
    assert machine.sent("a", 0, 29000, "underflow") == []
    assert machine.sent("a", 1, first.start + 5, "late") == []
    for _ in range(2):
        grant, actions = received(machine, actions)
    assert machine.completed == 3  # nothing is repeated once more


@pytest.mark.parametrize("window", [2, 1])
def test_a_burst_that_is_not_confirmed_in_time_is_repeated_without_the_watchdog(window):
    schedule, machine = make(windows=(window,), count=2, confirmed={"a": 1}, confirmation_samples=3000)
    actions = begin(schedule, machine)
    while actions:
        grants = actions[0].grants
        actions = []
        for node in NODES:
            actions += machine.acknowledge(node, grants)
    last = max(grants, key=lambda grant: grant.start)
    machine.sent("a", 0, last.start + 100)
    end = last.start - 100 + 100 + 3000  # of the patience with the burst before
    assert machine.time(end) == []
    (release,) = machine.time(end + 1)
    assert release.grants[0].slot == 0
    assert release.grants[0].attempt == 1


def test_the_rest_of_a_burst_that_was_not_sent_does_not_spoil_the_next_one():
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 1})
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        machine.acknowledge(node, [first, second])
    machine.sent("a", 0, first.start + 10, "late")
    machine.sent("a", 0, first.start + 60, "underflow")
    (release,) = machine.sent("a", 0, second.start + 100)
    assert [(grant.slot, grant.attempt) for grant in release.grants] == [(0, 1)]


def test_each_pacing_has_its_lead_and_a_late_burst_doubles_both_up_to_a_limit():
    schedule, machine = make(windows=(2, 1), count=2, confirmed={"a": 1}, lead_samples=1000, reactive_lead_samples=600,
                             max_lead_samples=3000)
    now, leads = 0, []
    machine.time(now)
    actions = begin(schedule, machine)
    for late in (True, True, False):
        grants = actions[0].grants
        leads.append(grants[0].start - now)
        for node in NODES:
            machine.acknowledge(node, grants)
        now = grants[-1].start + 5000
        machine.time(now)
        for grant in grants:  # both are late, which tells no more than one
            actions = machine.sent("a", 0, grant.start + (1 if late else 100), "late" if late else "ok", late)
    assert leads == [1000, 2000, 3000]
    assert isinstance(actions[0], PhaseDone)
    machine.produced(Product("phase0", {}))
    machine.product_acknowledged("a", "phase0")
    (release,) = machine.product_acknowledged("b", "phase0")
    assert release.grants[0].start - now == 2400


def test_slots_released_together_are_all_over_before_a_spoiled_phase_is_repeated():
    slots = [Slot(0, "sweep", ("a",), (0, 0), 0, follows) for follows in (False, True, False)]
    schedule = build_schedule(NODES, 100, [("phase0", 1, slots)])
    machine = SlotScheduler(schedule, confirmed={"a": 1})
    first, second = begin(schedule, machine)[0].grants
    assert machine.sent("a", 0, first.start + 3, "late") == []
    for node in NODES:
        assert machine.acknowledge(node, [first]) == []
    machine.acknowledge("a", [second])
    (release,) = machine.acknowledge("b", [second])
    assert [(grant.slot, grant.attempt) for grant in release.grants] == [(0, 1), (1, 1)]


def test_a_burst_that_is_refused_before_its_time_was_not_sent():
    schedule, machine = make(windows=(2,), count=2, confirmed={"a": 1}, lead_samples=500, early_samples=500)
    machine.time(1000)
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        machine.acknowledge(node, [first, second])
    machine.sent("a", 0, 1100, "refused")
    (release,) = machine.sent("a", 0, second.start + 100)
    assert [(grant.slot, grant.attempt) for grant in release.grants] == [(0, 1)]


def test_on_radios_the_pace_counts_from_when_a_phase_has_really_begun():
    schedule = cycled(paced=(0,))
    machine = SlotScheduler(schedule, until_sample=6000, reactive_lead_samples=50, early_samples=20)
    actions, starts, now, released = machine.ready("ap1", schedule.hash), [], 0, []
    while not actions or not isinstance(actions[-1], Finished):
        match actions:
            case []:  # held
                assert machine.holding
                assert machine.timed_out() == []
                now += 10
                actions = machine.time(now)
            case [Release((grant,))]:
                starts.append(grant.start)
                released.append(now)
                now = 5000 + 130 if len(starts) == 1 else grant.start + 80
                assert machine.time(now) == []
                actions = machine.acknowledge("ap1", [grant])
            case [PhaseDone(phase, _)]:
                actions = machine.produced(Product(phase, {}, pace_samples=1000))
            case [Publish(product)]:
                actions = machine.product_acknowledged("ap1", product.phase)
    # Start and cycle a, b, a, b: the first of a waits for the radios, the second for the pace.
    assert starts == [0, 5180, 5310, 6180, 6310]
    assert released == [0, 5130, 5260, 6110, 6260]  # the lead before, and a little


def test_a_slot_after_idle_samples_is_held_too_and_begins_when_it_was_to():
    slots = [Slot(0, "sweep", ("a",), (0, 0), idle_samples=idle) for idle in (0, 3000)]
    schedule = build_schedule(NODES, 100, [("phase0", 1, slots)])
    machine = SlotScheduler(schedule, reactive_lead_samples=50, early_samples=10)
    assert machine.time(1000) == []
    (first,) = begin(schedule, machine)[0].grants
    machine.acknowledge("a", [first])
    assert machine.acknowledge("b", [first]) == []
    assert machine.holding
    assert machine.time(4089) == []
    assert machine.time(4090) == [Release((Grant(1, 0, 4150),))]
    assert not machine.holding
    assert machine.time(9000) == []


def test_a_node_that_stops_answering_while_a_phase_is_held_is_named():
    schedule, machine = make(first_start=5000)
    machine.time(0)
    assert begin(schedule, machine) == []
    assert machine.timed_out() == []
    assert machine.timed_out({"b"}) == [Finished("node b stopped answering before phase phase0")]
    assert not machine.holding


def test_slots_in_flight_let_those_behind_them_be_released_ahead_of_time():
    schedule, machine = make(windows=(2,), count=4, lead_samples=20)
    machine.time(0)
    first, second = begin(schedule, machine)[0].grants
    for node in NODES:
        actions = machine.acknowledge(node, [first])
    assert actions[0].grants[0].start == 220


def test_idle_samples_of_a_slot_come_before_it_in_every_attempt():
    slots = [Slot(0, "sweep", ("a",), (0, 0), idle_samples=idle) for idle in (5, 0, 40)]
    schedule = build_schedule(NODES, 100, [("phase0", 1, slots)])
    machine = SlotScheduler(schedule)
    seen, _ = complete(machine, begin(schedule, machine), lambda g: "lost" if (g.slot, g.attempt) == (2, 0) else "ok")
    assert [grant.start for grant in seen] == [5, 105, 245, 385]


def test_each_lock_step_phase_may_be_repeated_as_often_as_the_one_before():
    schedule, machine = make(windows=(1, 1), count=1, max_attempts=2, confirmed={"a": 1})
    actions = begin(schedule, machine)
    for phase in ("phase0", "phase1"):
        grant, actions = received(machine, actions)
        actions = machine.sent("a", 0, grant.start + 3, "underflow")
        grant, _ = received(machine, actions)
        (done,) = machine.sent("a", 0, grant.start + 100)
        assert done == PhaseDone(phase, (grant,))
        machine.produced(Product(phase, {}))
        machine.product_acknowledged("a", phase)
        actions = machine.product_acknowledged("b", phase)
    assert actions == [Finished(None)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of what a testbed file says of linearising arrays over their mutual coupling, see `testbed_checks`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .testbed_yaml import Document, show

if TYPE_CHECKING:
    from .testbed import Testbed

MIN_HOLD = 3  # samples of a pilot, with one guarded at either end
LAGS = 4  # samples beyond the guards, early and late, at which pilots are looked for
PROBE_TERMS = 2  # further orders that are looked at, to see whether the order is high enough
PILOTS_PER_TERM, PILOTS_PER_TERM_WITH_MEMORY = 2, 3  # fewer do not always determine the coefficients
# Data hardly ever come near a peak further above their power: so many pilots like data would not tell orders apart.
MAX_DATA_PEAK_DB = {3: 30.0, 5: 18.0, 7: 14.0, 9: 10.0, 11: 10.0}


def check(document: Document, testbed: Testbed) -> None:
    """Raise TestbedError for arrays that cannot be linearised, or whose linearity cannot be measured."""
    if testbed.linearity is not None:
        _check_linearity(document, testbed)
    if testbed.mutual_coupling is None:
        return
    _check_access_points(document, testbed)
    _check_pilots(document, testbed)
    _check_slot(document, testbed)
    _check_full_scale(document, testbed)


def _check_linearity(document: Document, testbed: Testbed) -> None:
    if testbed.mutual_coupling is None:
        raise document.error(("linearity",), "needs a section mutual_coupling, which says what is linearised")
    if testbed.verification is None:
        raise document.error(("linearity",), "needs a section verification, whose uplink the weights come from")
    if testbed.linearity.ue != testbed.verification.ue:
        raise document.error(("linearity", "ue"), f"value {show(testbed.linearity.ue)}: must be that of verification, "
                                                  f"{testbed.verification.ue}")
    slots, guard = testbed.slots, testbed.linearity.guard_subcarriers
    needed = 2 * (slots.num_subcarriers // 2 + guard + slots.num_subcarriers) + 1
    if slots.pilot_samples < needed:
        raise document.error(("slots", "pilot_samples"), f"value {slots.pilot_samples}: must be at least {needed} for "
                             f"the adjacent channels of linearity, as wide as num_subcarriers = {slots.num_subcarriers}"
                             f"{f', guard_subcarriers = {guard} away' if guard else ''}")


def _check_access_points(document: Document, testbed: Testbed) -> None:
    for section in ("beamsync", "bidirectional"):
        if len(testbed.aps) < 2 and getattr(testbed, section) is not None:
            raise document.error((section,), "not with a single access point; required: at least 2 nodes of kind ap")
    for index, node in enumerate(testbed.nodes):
        if node.kind == "ap" and node.num_ports < 2:
            raise document.error(("nodes", index, "num_ports"), f"value {node.num_ports}: with mutual_coupling must be "
                                 f"at least 2, since ports of access point {node.name} are to hear each other")
    if testbed.frontend == "simulated" and not testbed.propagation.couples_ports:
        raise document.error(("mutual_coupling",), "the ports of a node must hear each other: propagation.coupling or "
                                                   "propagation.coupling_db must be set")


def _check_pilots(document: Document, testbed: Testbed) -> None:
    settings = testbed.mutual_coupling
    if settings.memory_depth > 1 and settings.hold_samples > 1:
        raise document.error(("mutual_coupling", "hold_samples"), f"value {settings.hold_samples}: must be 1 with "
                             f"memory_depth = {settings.memory_depth}: pilots that are held show no memory")
    if testbed.frontend == "usrp" and settings.memory_depth == 1 and settings.guard_samples < 1:
        raise document.error(("mutual_coupling", "guard_samples"), f"value {settings.guard_samples}: must be at least "
                             "1 with frontend: usrp, whose filters and fractions of a sample smear pilots: "
                             f"hold_samples at least {MIN_HOLD}")
    if 2 * settings.guard_samples >= settings.hold_samples:
        raise document.error(("mutual_coupling", "guard_samples"), f"value {settings.guard_samples}: twice that must "
                             f"be below hold_samples = {settings.hold_samples}")
    terms = (settings.order + 1) // 2 + PROBE_TERMS
    per_term = PILOTS_PER_TERM if settings.memory_depth == 1 else PILOTS_PER_TERM_WITH_MEMORY
    needed = per_term * terms * settings.memory_depth
    if settings.num_pilots < needed:
        raise document.error(("mutual_coupling", "num_pilots"), f"value {settings.num_pilots}: must be at least "
                             f"{needed} for order = {settings.order}, memory_depth = {settings.memory_depth}")
    _check_design(document, testbed)
    if settings.calibration == "single_stage" and not settings.predistort:
        raise document.error(("mutual_coupling", "calibration"), "value single_stage: only with predistort: true, "
                                                                 "whose pilots it takes; allowed: all_pairs, ratio")


def _check_design(document: Document, testbed: Testbed) -> None:
    settings = testbed.mutual_coupling
    if settings.design == "two_level" and settings.order > 3:
        raise document.error(("mutual_coupling", "design"), "value two_level: two amplitudes do not show order "
                             f"{settings.order}; allowed: data_like, uniform, or order: 3")
    if settings.design == "data_like":
        most = MAX_DATA_PEAK_DB[settings.order]
        if settings.peak_db > most:
            raise document.error(("mutual_coupling", "peak_db"), f"value {settings.peak_db:g}: must be at most "
                                 f"{most:g} for order = {settings.order} with design: data_like; uniform has no such "
                                 "limit")


def _check_slot(document: Document, testbed: Testbed) -> None:
    settings, slots = testbed.mutual_coupling, testbed.slots
    prefix = 2 * (LAGS + settings.guard_samples)
    if slots.prefix_samples < prefix:
        raise document.error(("slots", "prefix_samples"), f"value {slots.prefix_samples}: must be at least {prefix} "
                             f"with mutual_coupling and guard_samples = {settings.guard_samples}")
    past = settings.memory_depth - 1
    needed = slots.lead_samples + settings.num_pilots * settings.hold_samples + past + 2 * slots.prefix_samples
    if needed > slots.slot_samples:
        raise document.error(("slots", "slot_samples"), f"value {slots.slot_samples}: must be at least {needed} = "
                             "lead_samples + prefix_samples + num_pilots * hold_samples "
                             f"{'+ memory_depth - 1 ' if past else ''}+ prefix_samples for mutual_coupling")


def _check_full_scale(document: Document, testbed: Testbed) -> None:
    """Converters of real radios clip beyond 1."""
    if testbed.frontend != "usrp":
        return
    peak_db, amplitude = testbed.mutual_coupling.peak_db, testbed.usrp.tx_amplitude
    if amplitude * 10 ** (peak_db / 20) > 1.0 + 1e-9:  # 1e-9: a limit in decibels is not exact
        most = math.floor(-2000 * math.log10(amplitude)) / 100
        raise document.error(("mutual_coupling", "peak_db"), f"value {peak_db:g}: the largest pilot exceeds the "
                             f"converters' full scale; must be at most {most:g} with "
                             f"usrp.tx_amplitude = {amplitude:g}")

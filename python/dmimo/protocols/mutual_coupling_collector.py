# SPDX-License-Identifier: GPL-3.0-or-later
"""What mutual coupling says of all access points (APs): their amplifiers, and then their calibrations.

A port that cannot be calibrated costs the array that port, not the run: its coefficient is 0, so that it gets no part
of a joint transmission, and it is named. So is a port whose amplifier is not known well enough to be predistorted: it
stays as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Literal, NamedTuple

import numpy as np

from ..core import mutual_coupling as coupling
from ..core import predistortion
from ..core.pair_consistency import Consistency, consistency
from ..core.predistortion import Identification, PilotStatistics
from ..core.predistortion_identification import misalignment
from ..core.predistortion_statistics import matched_gains
from ..core.reciprocity import fix_gauge
from .bidirectional_estimate import SideCalibration
from .internal_calibration import calibrate_array, phase_std
from .mutual_coupling import AMPLITUDES, COUPLING, MutualCouplingPlan
from .slots import Collector, Grant, Product

Calibration = Literal["all_pairs", "ratio", "single_stage"]
# Of the energy at the best lag that must be found at the expected one.
# Held pilots that come l samples off lose l / hold of their amplitude there: with guards the share must be larger.
MIN_LAG_SHARE = 0.5
COMPRESSION = 0.07  # of an amplifier at unit power, in size: 0.6 dB or 4 degrees
TINY = 1e-30  # noise variance where there is no noise


class Links(NamedTuple):
    """gains (ports, ports) of an AP, receiver first; noise_var (ports,) of their errors, for each receiver; variance
    (ports,) of log c from other errors; saturated (ports, ports) bool, where the receiver clipped.
    """

    gains: np.ndarray
    noise_var: np.ndarray
    variance: np.ndarray
    saturated: np.ndarray


class MutualCouplingCollector:
    """Identifies the amplifiers of all APs, then calibrates each AP by itself.

    Parameters
    ----------
    plan : MutualCouplingPlan
    calibration : "all_pairs", "ratio" or "single_stage"
        From all pairs by maximum likelihood, from the pairs with the best reference alone as in the paper, or from all
        pairs of the swept pilots.
    max_phase_std_rad : float
        Predicted phase deviation of a port from which it is excluded.
    excludes : bool
        Whether the run goes on without ports that cannot be calibrated; otherwise the calibration is not trusted.

    Attributes
    ----------
    identifications : dict of AP to Identification
        Empty where amplifiers are not identified.
    calibrations : dict of AP to SideCalibration
        c, 1 at the port that is known best, against which its deviations are; nan, with infinite deviations, at ports
        that are excluded.
    hubs : dict of AP to int
        The port that is known best.
    doubts : list of str
        What speaks against the calibrations, in sentences.
    """

    phases = frozenset({AMPLITUDES, COUPLING})

    def __init__(self, plan: MutualCouplingPlan, calibration: Calibration = "all_pairs",
                 max_phase_std_rad: float = 0.2, excludes: bool = True):
        if calibration not in ("all_pairs", "ratio", "single_stage"):
            raise ValueError(f"calibration = {calibration!r}: must be 'all_pairs', 'ratio' or 'single_stage'")
        if plan.single_stage is not (calibration == "single_stage"):
            raise ValueError(f"calibration = {calibration!r}: the plan has single_stage = {plan.single_stage}")
        self._plan, self._method, self._limit, self._excludes = plan, calibration, max_phase_std_rad, excludes
        self.identifications: dict[str, Identification] = {}
        self.calibrations: dict[str, SideCalibration] = {}
        self.hubs: dict[str, int] = {}
        self.doubts: list[str] = []

    @property
    def identification(self) -> Identification:
        """That of all APs."""
        return Identification.joined(list(self.identifications.values()))

    @property
    def c(self) -> np.ndarray:
        """Calibration (ports,) of all APs as products have it: 1 at the first port of each that is not excluded, 0 at
        those that are.
        """
        parts = [np.where(np.isfinite(one.c), one.c, 0.0) for one in self.calibrations.values()]
        return np.concatenate([fix_gauge(c, int(np.argmax(c != 0))) if c.any() else c for c in parts])

    @property
    def phase_std_rad(self) -> np.ndarray:
        """Predicted deviation (ports,) of its phases, inf where excluded."""
        return np.concatenate([one.phase_std_rad for one in self.calibrations.values()])

    def update(self, product: Product) -> None:
        """Needs nothing from other phases."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of a phase: what to predistort with after the first, coefficients of all ports after the last."""
        values: dict[str, object] = {}
        reasons = self._misaligned(phase, results)
        if not reasons and phase == AMPLITUDES:
            statistics = {ap: statistics_of(results[ap]) for ap in self._plan.num_ports}
            values = self._identify(statistics, results)
        last = phase == COUPLING or self._plan.single_stage
        if not reasons and last:
            links = ({ap: self._matched(ap, one, results[ap]) for ap, one in statistics.items()}
                     if phase == AMPLITUDES else {ap: self._linear(ap, results[ap]) for ap in self._plan.num_ports})
            time = int(np.median(np.concatenate([one["starts"] for one in results.values()])))
            reasons = self._calibrate(links, time)
            values |= self._coefficients()
        return Product(phase, values, not reasons, tuple(reasons))

    def _misaligned(self, phase: str, results: Mapping[str, Mapping[str, object]]) -> list[str]:
        """The pair of ports of each AP whose pilots are furthest from where they should be, if that is too far."""
        plan, reasons = self._plan, []
        repeats = plan.repeats if phase == AMPLITUDES else plan.linear_repeats
        guard = plan.guard_samples
        share = max(MIN_LAG_SHARE, (1 - (guard + 0.5) / plan.hold_samples) ** 2)
        for ap in plan.num_ports:
            noise = plan.num_averaged * np.asarray(results[ap]["noise_var"])  # of a sample
            lag = misalignment(np.asarray(results[ap]["lags"]), noise, repeats, share)
            to, of = np.unravel_index(np.argmax(np.abs(lag)), lag.shape)
            off, side = abs(lag[to, of]), "late" if lag[to, of] > 0 else "early"
            if off > guard:
                more = " or more" if off == plan.max_lag else ""
                reasons.append(f"node {ap}: pilots of port {of} arrive {off} samples {side}{more} at port {to}: "
                               f"guard_samples = {guard} must be at least {off}, and hold_samples more than twice that")
        return reasons

    def _identify(self, statistics: Mapping[str, PilotStatistics],
                  results: Mapping[str, Mapping[str, object]]) -> dict[str, np.ndarray]:
        """`predistortion` (ports, P), or (ports, L, P), and `predistortion_peak` (ports,): see `NodePredistortion`;
        `predistortion_variance` (ports,) of log c of every port from what is left of the amplifiers.
        """
        plan = self._plan
        terms = (plan.order + 1) // 2
        count = sum(plan.num_ports.values())
        coefficients = np.zeros((count, plan.memory_depth, terms), complex)
        coefficients[:, 0, 0] = 1.0
        peaks = np.full(count, np.inf)
        for ap, one in statistics.items():
            # The noise of silence: what is left of the pilots also holds what no polynomial explains.
            found = predistortion.identify_amplifiers(one, noise_var=results[ap]["noise_var"], backoff_db=plan.peak_db)
            self.identifications[ap] = found
            own = plan.ports(ap)
            coefficients[own] = found.safe_coefficients.reshape(-1, plan.memory_depth, terms)
            peaks[own] = np.where(found.refused, np.inf, found.max_amplitude)
        if plan.memory_depth == 1:
            coefficients = coefficients[:, 0]
        left = np.concatenate([self._left_over(ap) for ap in plan.num_ports])
        return {"predistortion": coefficients, "predistortion_peak": peaks, "predistortion_variance": left}

    def _left_over(self, ap: str) -> np.ndarray:
        r"""Variance (ports,) of log c from what predistortion leaves of the amplifiers at the linear pilots' amplitude.

        A pilot of amplitude 1 comes out as :math:`1 - \sum_p \delta_p`, delta the errors of the coefficients; where
        predistortion is refused, as :math:`1 + \sum_p \kappa_p`, of which what all ports share cancels. How much that
        is, is known from the estimate, or where that is poor, from what amplifiers do (`COMPRESSION`). Samples before
        it count as noise, as pilots have random phases.
        """
        if ap not in self.identifications:
            return np.zeros(self._plan.num_ports[ap])
        found, depth = self.identifications[ap], self._plan.memory_depth
        # The coefficients of the sample itself, order by order.
        own = found.covariance[:, depth - 1 :: depth, depth - 1 :: depth].real
        errors = np.where(found.heard, np.sum(own, axis=(-2, -1)), np.inf)
        kappa = found.coefficients.reshape(len(errors), depth, -1)[:, 0, 1:].sum(axis=-1)
        expected = np.where(found.refused, kappa / (1 + errors / COMPRESSION**2), 0.0)
        uncertain = np.where(found.refused, 1 / (1 / COMPRESSION**2 + 1 / np.maximum(errors, TINY)), errors)
        # A model that is too small is wrong at this amplitude by as much as over all pilots, in size.
        misfit = np.where(found.mismatch_limited, found.mismatch, 0.0)
        return np.abs(expected - expected.mean()) ** 2 + uncertain + misfit

    def _matched(self, ap: str, statistics: PilotStatistics, result: Mapping[str, object]) -> Links:
        """Links of an AP from the swept pilots."""
        found, noise = self.identifications[ap], np.maximum(result["noise_var"], TINY)
        gains, energy = matched_gains(statistics, found.coefficients)
        more = np.zeros(len(gains))
        if statistics.memory_depth == 1:
            repeats = statistics.num_samples / self._plan.swept_pilots.size
            with np.errstate(divide="ignore", invalid="ignore"):  # of ports that nobody hears, which are not used
                more = coupling.single_stage_variance(gains, found.coefficients, self._plan.swept_pilots,
                                                      noise / repeats)
        return Links(gains, noise / energy.mean(), more, statistics.saturated)

    def _linear(self, ap: str, result: Mapping[str, object]) -> Links:
        """Links of an AP from the linear pilots."""
        gains, noise, residual = (np.asarray(result[key]) for key in ("gains", "noise_var", "residual_var"))
        others = ~np.eye(len(gains), dtype=bool)
        # What is left of the pilots of a port beyond noise, such as smeared ones, may be the same in all receivers.
        more = np.sum(np.where(others, residual - noise[:, None], 0.0), axis=0) / result["energy"]
        heard = np.maximum(np.sum(np.where(others, np.abs(gains) ** 2, 0.0), axis=0), TINY)
        return Links(gains, noise / result["energy"], self._left_over(ap) + np.maximum(more, 0.0) / heard,
                     np.asarray(result["saturated"]))

    def _calibrate(self, links: Mapping[str, Links], time: int) -> list[str]:
        """Calibrate every AP at a time; what ends the run."""
        reasons, self.doubts = [], []
        for ap, link in links.items():
            found = self._array(ap, link)
            usable = found.phase_std_rad < self._limit
            if np.count_nonzero(usable) < 2:
                clipped = f"; the receivers clip on {np.count_nonzero(link.saturated)} links"
                reasons.append(f"node {ap}: no two of its ports hear each other well enough to be calibrated"
                               f"{clipped if link.saturated.any() else ''}")
            elif not (self._excludes or usable.all()):
                reasons += [f"node {ap}: port {port}: does not hear the others, or is not heard, well enough to be "
                            "calibrated" for port in np.flatnonzero(~usable)]
            c, hub = np.where(usable, found.c, np.nan), self.hubs.get(ap, 0)
            self.calibrations[ap] = replace(
                found, c=fix_gauge(c, hub) if usable[hub] else c, reference=hub,
                phase_std_rad=np.where(usable, found.phase_std_rad, np.inf), reference_time=time,
                trusted=bool(np.count_nonzero(usable) > 1))
        return reasons

    def _array(self, ap: str, links: Links) -> SideCalibration:
        """Calibration of one AP from the ports that hear and are heard; the others have infinite variances."""
        count = len(links.gains)
        # A pair that is known in one direction says nothing of c; without a gain it weighs nothing.
        measured = np.where(links.saturated | links.saturated.T, 0.0, links.gains)
        c, covariance = np.full(count, np.nan, complex), np.diag(np.full(count, np.inf))
        used = np.flatnonzero(coupling.in_touch(measured, links.noise_var))
        if used.size >= 2:
            own = np.ix_(used, used)
            gains, noise = measured[own], links.noise_var[used]
            # Deviations count from the port that is known best: a poor first port must not make all others look poor.
            hub = int(coupling.best_reference(gains, noise))
            self.hubs[ap] = int(used[hub])
            best = calibrate_array(gains[..., None], noise, "ml", hub)
            found = calibrate_array(gains[..., None], noise, "argos", hub) if self._method == "ratio" else best
            c[used], covariance[own] = found
            whole = covariance[own] + np.diag(links.variance[used])
            whole = whole - whole[hub] - whole[:, hub, None] + whole[hub, hub]
            covariance[own] = whole * self._contradiction(
                ap, consistency(gains, best[0], noise, links.variance[used]), used)
        return SideCalibration(c=c, delay_s=np.zeros(count), frequency_hz=np.zeros(count), covariance=covariance,
                               phase_std_rad=phase_std(covariance), reference_time=0)

    def _contradiction(self, ap: str, found: Consistency, ports: np.ndarray) -> float:
        """Factor by which variances must be larger for the pairs of these ports to agree; a doubt where it is not 1."""
        if found.agrees:
            return 1.0
        worst = ports[int(np.argmax(found.port_excess))]
        self.doubts.append(
            f"{ap}: the pairs of its ports contradict each other, {np.sqrt(found.excess):.1f} times more than noise "
            f"explains and most of all those of port {worst}: coupling that is not reciprocal, or gains that have "
            "moved; predicted deviations are larger by as much")
        return found.excess

    def _coefficients(self) -> dict[str, object]:
        """c as `internal_c` for all APs, and for each AP by itself as joint transmissions take it."""
        values: dict[str, object] = {"internal_c": self.c, "internal_std_rad": self.phase_std_rad}
        for ap, one in self.calibrations.items():
            values |= {f"{ap}_c": self.c[self._plan.ports(ap)], f"{ap}_delay_s": one.delay_s,
                       f"{ap}_frequency_hz": one.frequency_hz, f"{ap}_reference_time": one.reference_time}
        return values


def find(collectors: Mapping[str, Collector]) -> MutualCouplingCollector | None:
    """The collector of mutual coupling among those of a run: by itself or part of the synchronisation; None without."""
    if "linearizer" in collectors:
        return collectors["linearizer"]
    # Without mutual coupling, the synchronisation's internal calibration is another.
    member = collectors["beamsync"].members.get("internal") if "beamsync" in collectors else None
    return member if isinstance(member, MutualCouplingCollector) else None


def statistics_of(result: Mapping[str, object]) -> PilotStatistics:
    """Statistics from the results of `MutualCouplingRole`."""
    found = {field.name: result[field.name] for field in fields(PilotStatistics)}
    return PilotStatistics(**{name: value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value
                              for name, value in found.items()})

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of arrays that have linearised and calibrated themselves, and what is true where that is known."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from . import simulated
from .assembly import Assembly
from .core import predistortion
from .core.amplifier_model import amplify_with_memory
from .core.memory_polynomial import predistort_with_memory
from .core.predistortion import Identification
from .protocols import mutual_coupling_collector
from .protocols.bidirectional_estimate import SideCalibration
from .protocols.joint_transmission import decibels
from .protocols.slots import Collector
from .simulation.amplifiers import Amplifiers
from .simulation.network import Network

# Equally likely amplitudes over which true distortions are averaged; in this order and with these phases, always.
_SAMPLES, _SEED = 4096, 20170713
# A sample whose model output is this close to what is wanted was inside the invertible range.
_REACHED = 1e-6
_FLAGS = ("refused", "mismatch_limited", "receivers_disagree", "unexplained", "saturated")
_NAMED = 8  # ports that a doubt names
_DEVIATIONS = 2.0  # standard errors of a difference beyond which it is one
_CLIPPED = 0.01  # of the data's samples, from which clipping is a doubt
_CAUSES = {
    "refused": "are not predistorted: linear as they are, known too poorly (more pilots), of an order that is too low, "
               "or clipped by it more than mended (a higher peak_db)",
    "mismatch_limited": "distort beyond order {order}, order too low: raise mutual_coupling.order, or lower peak_db "
                        "where they saturate",
    "unexplained": "have what no amplifier's polynomial explains: memory (memory_depth), an order that is too low, or "
                   "pilots that are smeared (hold_samples, guard_samples)",
    "receivers_disagree": "look different to different receivers: one is saturated, or couplings are not flat or not "
                          "constant",
}


def content(assembly: Assembly, network: Network | None, collectors: Mapping[str, Collector]) -> dict[str, object]:
    """What a run with mutual coupling adds to the report: `amplifiers`, `doubts`, and where it does nothing else more.

    That is `access_points`, for each its calibration and what verification says of it, with the gains and errors of the
    one that loses most at the top level, and `linearity`.
    """
    member = mutual_coupling_collector.find(collectors)
    found: dict[str, object] = {}
    if member.identifications:
        aps = tuple(ap.name for ap in assembly.testbed.aps)
        true = None if network is None else simulated.true_amplifiers(network, aps)
        found["amplifiers"] = amplifiers_section(member.identification, assembly.port_names, true)
        # Two amplitudes determine two coefficients, and cannot say whether there are more.
        found["amplifiers"]["order_checked"] = assembly.testbed.mutual_coupling.design != "two_level"
    doubts = [*_amplifier_doubts(found.get("amplifiers")), *member.doubts]
    if assembly.protocol != "linearize":
        return found | {"doubts": doubts}
    arrays = {ap: _array(assembly, network, collectors, ap, one, member.hubs.get(ap))
              for ap, one in member.calibrations.items()}
    found["access_points"] = arrays
    verified = [one["verification"] for one in arrays.values() if one.get("verification")]
    if verified:
        found |= max(verified, key=lambda one: (one["ideal_gain_db"] or 0.0) - (one["coherent_gain_db"] or 0.0))
    for key in ("alignment_error", "phase_error_deg"):
        errors = [one[key] for one in arrays.values() if one.get(key) is not None]
        found |= {key: max(errors)} if errors else {}
    heard = getattr(collectors.get("linearity"), "report", None)
    if heard is not None:
        found["linearity"] = _with_gains(assembly, heard, arrays)
    return found | {"doubts": [*_array_doubts(arrays), *doubts, *_linearity_doubts(found.get("linearity"))]}


def _array(assembly: Assembly, network: Network | None, collectors: Mapping[str, Collector], ap: str,
           calibration: SideCalibration, hub: int | None) -> dict[str, object]:
    """Calibration of an access point and what it is worth; `hub` is the port that deviations count from."""
    ports = assembly.ports_of((ap,))
    verifier = collectors.get(f"{ap}_verifier")
    return {
        "ports": list(ports),
        "excluded": _named(~np.isfinite(calibration.c), ports),
        "reference": ports[calibration.reference],
        "deviations_from": None if hub is None else ports[hub],
        "trusted": bool(calibration.trusted),
        "reference_time": calibration.reference_time,
        "frequency_hz": calibration.frequency_hz,
        "delay_s": calibration.delay_s,
        "c": calibration.c,
        "predicted_phase_std_deg": np.degrees(calibration.phase_std_rad),
        **assembly.truth(network, calibration, names=(ap,)),
        "verification": None if verifier is None or verifier.report is None else verifier.report,
    }


def _with_gains(assembly: Assembly, heard: Mapping[str, object], arrays: Mapping[str, Mapping]) -> dict[str, object]:
    """The section `linearity` with the coherent gain of each treatment, and that of ports that are all in phase.

    Both over the power p of the ports without phases, sum p, of those that are not excluded: in phase they would
    deliver (sum sqrt p)^2, where their channels are flat; otherwise less.
    """
    told = {}
    for ap, treatments in heard["access_points"].items():
        alone = np.array(arrays[ap]["verification"]["port_power_db"], float)  # None: nan
        power = 10 ** (alone[np.isfinite(arrays[ap]["c"]) & np.isfinite(alone)] / 10)
        scattered = power.sum() * 10 ** (assembly.testbed.linearity.power_db / 10)
        ideal_db = decibels(np.sqrt(power).sum() ** 2, power.sum())
        told[ap] = {name: one | {"coherent_gain_db": _over(one["power_db"], scattered), "ideal_gain_db": ideal_db}
                    for name, one in treatments.items()}
    return {**heard, "access_points": told}


def _over(power_db: float | None, scale: float) -> float | None:
    """A power in dB over another one; None where one of them is not known."""
    return None if power_db is None else decibels(10 ** (power_db / 10), scale)


def _array_doubts(arrays: Mapping[str, Mapping]) -> list[str]:
    """What to know before the calibrations are used."""
    excluded = [port for one in arrays.values() for port in one["excluded"]]
    total = sum(len(one["ports"]) for one in arrays.values())
    doubts = _doubt(excluded, total, "cannot be calibrated and stay silent in joint transmissions")
    return doubts + [f"{ap}: {doubt}" for ap, one in arrays.items()
                     for doubt in (one["verification"] or {}).get("doubts", ())]


def _amplifier_doubts(section: Mapping[str, object] | None) -> list[str]:
    """What to know before the amplifiers' coefficients are used."""
    if section is None:
        return []
    ports, refused = section["ports"], section["flags"]["refused"]
    doubts = [doubt for flag, cause in _CAUSES.items()
              for doubt in _doubt(section["flags"][flag], len(ports), cause.format(order=section["order"]))]
    clipped = {port: share for port, share in zip(ports, section["clipped_share"], strict=True)
               if share > _CLIPPED and port not in refused}
    most = f"{'up to ' if len(clipped) > 1 else ''}{100 * max(clipped.values(), default=0.0):.2g} %"
    return doubts + _doubt(list(clipped), len(ports),
                           f"clip {most} of data of unit power: more back-off, or a higher peak_db where pilots end "
                           "below what the amplifier can reach")


def _linearity_doubts(section: Mapping[str, object] | None) -> list[str]:
    """Access points that are certainly worse with predistortion than with calibration alone, where both are known."""
    doubts = []
    for ap, found in ({} if section is None else section["access_points"]).items():
        calibrated, after = found["calibrated"], found["after"]
        worse = []
        for key, sign in (("evm", 1.0), ("aclr", -1.0)):
            numbers = [one[f"{key}{what}_db"] for what in ("", "_std") for one in (calibrated, after)]
            if None not in numbers and sign * (numbers[1] - numbers[0]) > _DEVIATIONS * np.hypot(*numbers[2:]):
                worse.append(f"{key.upper()} {numbers[0]:.1f} dB before, {numbers[1]:.1f} dB after")
        if worse:
            clips, hint = after.get("clips"), "lower linearity.power_db, or raise mutual_coupling.peak_db"
            doubts.append(f"{ap}: predistortion makes it worse: {'; '.join(worse)}"
                          + (f" ({clips} samples were clipped: {hint})" if clips else ""))
    return doubts


def _doubt(ports: Sequence[str], total: int, what: str) -> list[str]:
    """A sentence that names the first ports; none where there are no ports."""
    more = f" and {len(ports) - _NAMED} more" if len(ports) > _NAMED else ""
    return [f"{len(ports)} of {total} ports {what}: {', '.join(ports[:_NAMED])}{more}"] if ports else []


def amplifiers_section(identification: Identification, ports: Sequence[str],
                       true: Amplifiers | None = None) -> dict[str, object]:
    """Section `amplifiers` of the report: what was identified, how well, and which ports stay as they are.

    A sample of unit mean power is 0 dB. Distortions are power relative to the linear signal, in dB; what there is not
    is nan, which is written as null. `distortion_without_db` and `predistorted_db` are those inside the invertible
    range, `clipping_db` is what the peaks beyond it add, and `predicted_db` what is left with both.

    Parameters
    ----------
    identification : of M ports, each heard by the others (`Identification.joined` for several APs); M_rx = M_tx = M.
    ports : M names.
    true : amplifiers of these ports, where they are simulated. Their coefficients are stated relative to the direct
        linear one, as the identified ones.

    Raises
    ------
    ValueError
        If the number of names or of true amplifiers is not that of the ports.
    """
    found, count = identification, len(ports)
    if found.refused.shape != (count,) or found.deaf.shape != (count,):
        raise ValueError(f"ports has {count} names: must be one for each of the {found.refused.shape} transmitters "
                         f"and {found.deaf.shape} receivers")
    if true is not None and true.num_ports != count:
        raise ValueError(f"true has {true.num_ports} amplifiers: must be one for each of the {count} ports")
    depth = found.coefficients.shape[1] if found.coefficients.ndim == 3 else 1
    flags = {name: _named(getattr(found, name), ports) for name in _FLAGS}
    section = {
        "ports": list(ports),
        "order": 2 * found.coefficients.shape[-1] - 1,
        "memory_depth": depth,
        "coefficients": found.coefficients,
        # With memory order by order, as the covariance.
        "predicted_std": np.sqrt(np.diagonal(found.covariance, axis1=-2, axis2=-1).real),
        "max_amplitude": float(found.max_amplitude),
        "reach": reach(found),
        "distortion_without_db": _db(found.distortion_without),
        "predicted_db": _db(predicted(found)),
        "predistorted_db": _db(np.where(found.heard & ~found.refused, found.distortion_with + found.mismatch, np.nan)),
        "distortion_with_db": _db(found.distortion_with),
        "mismatch_db": _db(found.mismatch),
        "clipping_db": _db(found.clipping),
        "clipped_share": found.clipped_share,
        "num_receivers": found.num_receivers,
        "flags": flags | {"unheard": _named(~found.heard & ~found.saturated, ports)},
        "deaf": _named(found.deaf & ~_among_saturated(found, ports), ports),
    }
    return section if true is None else section | _truth(found, true)


def predicted(identification: Identification) -> NDArray:
    """Distortion (M,) with predistortion: of the coefficients' errors, of higher orders, and of what is clipped.

    Powers of three independent causes add. Ports that stay as they are keep the distortion without; nan where nothing
    was heard.
    """
    found = identification
    parts = found.distortion_with + found.mismatch + found.clipping
    return np.where(found.heard, np.where(found.refused, found.distortion_without, parts), np.nan)


def _among_saturated(found: Identification, ports: Sequence[str]) -> NDArray:
    """Whether (M,) some receiver was saturated by every other port of the access point.

    A receiver that hears nobody may then have been left out altogether.
    """
    ap = np.array([port.rpartition(":")[0] for port in ports])
    others = (ap[:, None] == ap) & ~np.eye(len(ports), dtype=bool)
    return np.all(found.saturated | ~others, axis=-1) & others.any(axis=-1)


def reach(identification: Identification) -> NDArray:
    """Largest amplifier output (M,) that predistortion can ask for; inf for ports that stay as they are.

    With memory that of the direct path, as `predistort_with_memory` limits it.
    """
    return np.where(identification.refused, np.inf, _identified_reach(identification))


def _identified_reach(found: Identification) -> NDArray:
    """As `reach`, whether or not predistortion was refused."""
    direct = found.coefficients[:, 0] if found.coefficients.ndim == 3 else found.coefficients
    return predistortion.invertible_range(direct, max_amplitude=found.max_amplitude).output_amplitude


def _named(which: NDArray, ports: Sequence[str]) -> list[str]:
    return [port for port, is_one in zip(ports, which, strict=True) if is_one]


def _db(power: NDArray) -> NDArray:
    """10 log10 of positive finite numbers, nan of others."""
    known = np.isfinite(power) & (power > 0)
    return np.where(known, 10 * np.log10(np.where(known, power, 1.0)), np.nan)


def _truth(found: Identification, true: Amplifiers) -> dict[str, object]:
    coefficients = true.coefficients / true.coefficients[:, :1, :1]
    without, with_ = true_distortions(found, true)
    return {
        "true_coefficients": coefficients[:, 0] if true.num_taps == 1 else coefficients,
        "true_saturation": true.saturation,
        "true_distortion_without_db": _db(without),
        "true_distortion_with_db": _db(with_),
    }


def true_distortions(identification: Identification, true: Amplifiers) -> tuple[NDArray, NDArray]:
    r"""NMSE (M,) of the true amplifiers without and with predistortion as identified, for Gaussian data of unit power.

    Samples x give the outputs z of the amplifiers. What the best linear filter, with as many taps as the amplifiers
    have, cannot explain is distortion:

    .. math:: D = \frac{1}{|a_{00}|^2} \min_g \sum_k |z_k - \sum_l g_l x_{k-l}|^2 \Big/ \sum_k |x_k|^2

    with :math:`a_{00}` the direct linear coefficient, so that D is relative to the linear signal as the predictions
    are. Both take the same samples, as the predictions do: those below the largest pilot for which the identified
    amplifier has an inverse, whether or not that is used. Amplitudes are equally likely quantiles, so that without
    memory this is a quadrature; their order and phases, which matter with memory only, are random and always the same.
    nan: no samples.
    """
    x = np.broadcast_to(_gaussian(identification.max_amplitude), (true.num_ports, _SAMPLES))
    coefficients = identification.safe_coefficients
    if coefficients.ndim == 3:
        limit = np.where(identification.refused, np.inf, identification.max_amplitude)
        u = predistort_with_memory(x, coefficients, max_amplitude=limit).samples
        reached = amplify_with_memory(u, coefficients)
    else:
        u = identification.predistort(x).samples
        reached = predistortion.amplify(u, coefficients)
    # With memory, what came before may put a sample out of reach.
    inside = np.abs(x) <= _identified_reach(identification)[:, None]
    judged = inside & (np.abs(reached - x) < _REACHED)
    direct = np.abs(true.coefficients[:, 0, 0]) ** 2
    return _nonlinear(x, true(x), judged) / direct, _nonlinear(x, true(u), judged) / direct


def _gaussian(peak: float) -> NDArray:
    """Complex samples with the amplitudes of Gaussian data of unit power below `peak`, in random order."""
    rng = np.random.default_rng(_SEED)
    share = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    amplitudes = np.sqrt(-np.log1p(share * np.expm1(-(peak**2))))
    return rng.permutation(amplitudes) * np.exp(2j * np.pi * rng.random(_SAMPLES))


def _nonlinear(x: NDArray, output: NDArray, judged: NDArray) -> NDArray:
    """Power (M,) of what no filter of L taps makes of x (M, N) in outputs (M, N - L + 1), over the power of x."""
    taps = x.shape[-1] - output.shape[-1] + 1
    keep = judged[:, taps - 1 :]
    delayed = np.stack([x[:, taps - 1 - lag : x.shape[-1] - lag] * keep for lag in range(taps)], axis=-1)
    wanted = (output * keep)[..., None]
    adjoint = np.swapaxes(delayed.conj(), -1, -2)
    left = wanted - delayed @ (np.linalg.pinv(adjoint @ delayed, hermitian=True) @ (adjoint @ wanted))
    power = np.sum(np.abs(delayed[..., 0]) ** 2, axis=-1)
    return np.sum(np.abs(left) ** 2, axis=(-2, -1)) / np.where(power > 0, power, np.nan)

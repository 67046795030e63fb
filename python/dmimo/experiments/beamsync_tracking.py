# SPDX-License-Identifier: GPL-3.0-or-later
r"""BeamSync over time and over many access points: tracking, planned intervals, and the graph against the star.

Beyond the paper, which synchronises one pair at fixed intervals. Truth are the oscillators of the simulation: CFO,
wander and phase noise as functions of absolute time, of which the filter knows the parameters only. An exchange gives
:math:`\varphi = 2(\theta_A - \theta_B)` and :math:`f = f_A - f_B` with Gaussian errors of given standard deviations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.carrier_model import wrap
from ..core.carrier_tracking import CarrierTracker, gain_loss_db, resynchronisation_interval, steady_state_std_rad
from ..simulation.oscillators import Oscillator, OscillatorBank
from .registry import register

SAMP_RATE = 1e6
# Phases are read where the oscillators' grid blocks begin.
GRID = 256
METHODS = {
    "once": "frequency corrected exactly once, phase held, every {interval:.2f} s",
    "each": "phase and frequency of each exchange, every {interval:.2f} s",
    "tracked": "tracked, synchronised as planned",
}
_FACTORS = (0.7, 1.0, 1.4)
# Exchanges before the steady state, and those that count. The first ones are closer, each interval longer by a factor:
# at full length the phase could not be unwrapped before the frequency is known.
_WARM_UP, _COUNTED = 12, 10
_FIRST, _GROWTH = 0.02, 1.6


class OscillatorPairs:
    """phi [rad] and f [Hz] of leaders and followers, one pair for each trial, at grid blocks of absolute time."""

    def __init__(self, rngs: Sequence[np.random.Generator], *, offset_hz: float, **settings):
        keys = [int(rng.integers(2**63)) for rng in rngs]
        cfo = np.array([offset_hz * rng.standard_normal(2) for rng in rngs])

        def bank(**options) -> OscillatorBank:
            nodes = [Oscillator(samp_rate=SAMP_RATE, seed_key=(keys[k], side), cfo_hz=cfo[k, side], **options)
                     for k, side in np.ndindex(len(keys), 2)]
            return OscillatorBank(nodes, 2)

        self._all, self._quiet = bank(**settings), bank(**{**settings, "linewidth_hz": 0.0})

    def phase(self, block: int) -> NDArray:
        """phi (trials,) at sample 256 block."""
        theta = self._all.grid_phase(block, 1)[0][:, 0].reshape(-1, 2)
        return 2.0 * (theta[:, 0] - theta[:, 1])

    def frequency(self, block: int) -> NDArray:
        """f (trials,), the mean over the grid block that begins there, of CFO and wander."""
        theta = self._quiet.grid_phase(block, 2)[0].reshape(-1, 2, 2)
        turned = wrap(theta[..., 1] - theta[..., 0])
        return (turned[:, 0] - turned[:, 1]) * SAMP_RATE / (2.0 * np.pi * GRID)


def _pair_model(configuration: Mapping) -> dict[str, float]:
    """Parameters of the difference of two equal nodes."""
    return {"linewidth_hz": 2.0 * configuration["linewidth_hz"],
            "drift_hz": np.sqrt(2.0) * configuration["drift_hz"],
            "drift_period_s": configuration["drift_period_s"]}


def _node_model(configuration: Mapping) -> dict[str, float]:
    return {key: configuration[key] for key in ("linewidth_hz", "drift_hz", "drift_period_s", "offset_hz")}


def _tracker(configuration: Mapping, shape: tuple[int, ...] = ()) -> CarrierTracker:
    return CarrierTracker(SAMP_RATE, **_pair_model(configuration), shape=shape,
                          offset_std_hz=np.sqrt(2.0) * configuration["offset_hz"])


def planned_blocks(configuration: Mapping) -> list[int]:
    """Grid blocks of the exchanges that the planner asks for; its deviations do not depend on what is measured."""
    tracker, blocks = _tracker(configuration), [0]
    last = int(configuration["duration_s"] * SAMP_RATE / GRID)
    while blocks[-1] <= last:
        tracker.update(0.0, configuration["phase_std_rad"], GRID * blocks[-1], 0.0, configuration["frequency_std_hz"])
        plan = tracker.next_synchronisation(configuration["budget_rad"], GRID * blocks[-1])
        if not plan.feasible:
            raise ValueError(f"budget_rad={configuration['budget_rad']} is below what an exchange leaves")
        blocks.append(max(int(plan.sample) // GRID, blocks[-1] + 1))
    return blocks[:-1]


def _time_blocks(configuration: Mapping) -> NDArray:
    return np.rint(np.linspace(0, configuration["duration_s"], configuration["points"]) * SAMP_RATE / GRID).astype(int)


def summarise_tracking(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """RMS phase error of each method over time in degrees, with 95 % bands, and what the filter predicts."""
    exchanges = planned_blocks(configuration)
    interval = configuration["duration_s"] / len(exchanges)
    trials = len(arrays["tracked"])
    curves = []
    for key, label in METHODS.items():
        limits = [np.degrees(np.sqrt(np.maximum(part, 0.0))) for part in metrics.mean_interval(arrays[key] ** 2)]
        curves.append({"label": label.format(interval=interval),
                       **dict(zip(("mean", "low", "high"), map(np.ndarray.tolist, limits), strict=True))})
    predicted = np.degrees(arrays["predicted"].mean(axis=0)).tolist()
    budget = np.full(configuration["points"], np.degrees(configuration["budget_rad"])).tolist()
    curves += [{"label": label, "mean": values, "low": values, "high": values, "reference": True}
               for label, values in (("predicted standard deviation", predicted), ("budget", budget))]
    loss = gain_loss_db(configuration["budget_rad"], 2)
    return {
        "title": f"Two access points over {configuration['duration_s']:g} s, {len(exchanges)} exchanges",
        "caption": f"{trials} trials, 95 % confidence bands; at the budget two APs lose {loss:.3f} dB",
        "x_label": "time [s]",
        "y_label": "rms phase error [degrees]",
        "x": (_time_blocks(configuration) * GRID / SAMP_RATE).tolist(),
        "curves": curves,
        "zoom": [0.0, 3.0 * np.degrees(configuration["budget_rad"])],
    }


@register(
    "beamsync-tracking",
    title="Phase error over time: tracked with planned exchanges, and untracked at the same number of exchanges",
    summarise=summarise_tracking,
    plot="evolution",
    defaults={"duration_s": 30.0, "points": 301, "budget_rad": 0.1, "phase_std_rad": 0.005, "frequency_std_hz": 0.1,
              "linewidth_hz": 1e-5, "drift_hz": 0.01, "drift_period_s": 30.0, "offset_hz": 0.5},
    trials=200,
)
def tracking_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    r"""Phase errors (trials, points) of each method, and the predicted standard deviation of the tracked one.

    All methods have the same number of exchanges. "tracked": the Kalman filter's prediction, exchanges when its
    standard deviation reaches the budget. The others are evenly spaced. "once": the frequency of the beginning, known
    exactly, corrects the carrier for good, and the phase of the last exchange is held. "each": the phase and frequency
    of the last exchange are carried on.
    """
    rngs = [np.random.default_rng(seed) for seed in seeds]
    pairs = OscillatorPairs(rngs, **_node_model(configuration))
    planned, times = planned_blocks(configuration), _time_blocks(configuration)
    even = np.rint(np.arange(len(planned)) * times[-1] / len(planned)).astype(int).tolist()
    tracker = _tracker(configuration, (len(seeds),))
    held = dict.fromkeys(("once", "each"))
    out = {key: np.empty((len(seeds), len(times))) for key in (*METHODS, "predicted")}
    # At equal times exchanges come before the reading of the error.
    events = sorted([(b, 0, "planned") for b in planned] + [(b, 0, "even") for b in even]
                    + [(int(b), 1, k) for k, b in enumerate(times)], key=lambda event: event[:2])
    for block, _, what in events:
        if what in ("planned", "even"):
            phase, frequency = _measure(pairs, block, rngs, configuration)
            if what == "planned":
                tracker.update(phase, configuration["phase_std_rad"], GRID * block, frequency,
                               configuration["frequency_std_hz"])
            else:
                first = pairs.frequency(block) if held["once"] is None else held["once"][2]
                held = {"once": (block, phase, first), "each": (block, phase, frequency)}
            continue
        truth, known = pairs.phase(block), tracker.predict(GRID * block)
        out["tracked"][:, what] = wrap(known.phase_rad - truth)
        out["predicted"][:, what] = known.phase_std_rad
        for key, (since, phase, frequency) in held.items():
            passed_s = (block - since) * GRID / SAMP_RATE
            out[key][:, what] = wrap(phase + 4.0 * np.pi * frequency * passed_s - truth)
    return out


def _measure(pairs: OscillatorPairs, block: int, rngs: Sequence[np.random.Generator], configuration: Mapping):
    noise = np.array([rng.standard_normal(2) for rng in rngs])
    phase = wrap(pairs.phase(block) + configuration["phase_std_rad"] * noise[:, 0])
    return phase, pairs.frequency(block) + configuration["frequency_std_hz"] * noise[:, 1]


def _interval_s(configuration: Mapping, budget: float, drift: float) -> float:
    return resynchronisation_interval(budget, measurement_std_rad=configuration["phase_std_rad"],
                                      frequency_std_hz=configuration["frequency_std_hz"],
                                      **_pair_model({**configuration, "drift_hz": drift}))


def summarise_interval(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Interval at which the simulated rms error is the budget, with 95 % bands, and the planned one, against drift."""
    families = []
    for b, budget in enumerate(configuration["budget_rad"]):
        planned = [_interval_s(configuration, budget, drift) for drift in configuration["drift_hz"]]
        found = []
        for d, drift in enumerate(configuration["drift_hz"]):
            # A lower error means a longer interval: the upper limit of one gives the lower of the other.
            mean, low, high = metrics.mean_interval(arrays["squared_error"][:, b, d])
            used = {**configuration, "drift_hz": drift}
            found.append([planned[d] * _factor(part, budget, planned[d], used) for part in (mean, high, low)])
        mean, low, high = np.transpose(found).tolist()
        families.append({"label": f"{budget:g} rad", "curves": [{"mean": mean, "low": low, "high": high}],
                         "dashed": planned})
    trials = len(arrays["squared_error"])
    return {
        "title": "Interval of exchanges that keeps an error budget",
        "caption": f"{trials} trials, 95 % confidence bands; linewidth {configuration['linewidth_hz']:g} Hz, drift "
                   f"period {configuration['drift_period_s']:g} s",
        "x_label": "wander of each node's frequency, rms [Hz]",
        "y_label": "interval [s]",
        "x": list(configuration["drift_hz"]),
        "x_scale": "log",
        "families": families,
        "families_title": "budget",
        "kinds": ["simulated oscillators"],
        "bound": "planned",
    }


def _factor(squared: NDArray, budget: float, planned_s: float, configuration: Mapping) -> float:
    """Interval over the planned one at which the error is the budget, from errors (factors,) around it.

    The error follows the filter's own prediction up to a common factor near 1, fitted to all factors.
    """
    model = {"measurement_std_rad": configuration["phase_std_rad"],
             "frequency_std_hz": configuration["frequency_std_hz"], **_pair_model(configuration)}
    factors = np.geomspace(0.25, 4.0, 200)
    curve = steady_state_std_rad(factors * planned_s, **model) ** 2
    excess = np.exp(np.mean(np.log(squared) - np.interp(np.log(_FACTORS), np.log(factors), np.log(curve))))
    return float(np.exp(np.interp(np.log(budget**2 / excess), np.log(curve), np.log(factors))))


@register(
    "beamsync-interval",
    title="Interval of exchanges against oscillator wander for three error budgets, planned and simulated",
    summarise=summarise_interval,
    plot="curve_families",
    defaults={"budget_rad": [0.05, 0.1, 0.2], "drift_hz": [0.003, 0.01, 0.03, 0.1], "phase_std_rad": 0.005,
              "frequency_std_hz": 0.1, "linewidth_hz": 1e-5, "drift_period_s": 10.0, "offset_hz": 1e-6},
    trials=200,
)
def interval_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Mean squared phase error just before exchanges, (trials, budgets, drifts, 0.7, 1 and 1.4 planned intervals).

    The simulation draws the wander as sinusoids, which are smoother than the filter's process at lags below about a
    hundredth of the drift period: there the planned interval is on the safe side.
    """
    rngs = [np.random.default_rng(seed) for seed in seeds]
    budgets, drifts = configuration["budget_rad"], configuration["drift_hz"]
    out = np.zeros((len(seeds), len(budgets), len(drifts), len(_FACTORS)))
    for b, d, k in np.ndindex(out.shape[1:]):
        used = {**configuration, "drift_hz": drifts[d]}
        # Two nodes anew for each point: its oscillators are independent of the others'.
        pairs = OscillatorPairs(rngs, **_node_model(used))
        step = _FACTORS[k] * _interval_s(configuration, budgets[b], drifts[d]) * SAMP_RATE / GRID
        tracker = _tracker(used, (len(seeds),))
        lengths = np.minimum(_FIRST * _GROWTH ** np.arange(_WARM_UP + _COUNTED), 1.0)
        for exchange, block in enumerate(np.rint(1 + step * np.cumsum(lengths)).astype(int).tolist()):
            if exchange >= _WARM_UP:
                error = wrap(tracker.predict(GRID * block).phase_rad - pairs.phase(block))
                out[:, b, d, k] += error**2 / _COUNTED
            phase, frequency = _measure(pairs, block, rngs, configuration)
            tracker.update(phase, configuration["phase_std_rad"], GRID * block, frequency,
                           configuration["frequency_std_hz"])
    return {"squared_error": out}

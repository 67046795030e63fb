# SPDX-License-Identifier: GPL-3.0-or-later
"""Power amplifiers of the ports: odd-order polynomials with and without memory, back-off and saturation.

A port's samples x have unit mean power at nominal level. Its amplifier sees u = 10^(-back_off_db / 20) x, on a scale
where |u| = 1 is the amplitude that its coefficients refer to, and its output is scaled back, so that the small-signal
gain from x is 1 whatever the back-off: the linear gain, with its phase, belongs to the port's t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Orders 1, 3, 5, 7, 9 of a GaN amplifier at 2.1 GHz (signal of 40 MHz at 200 MS/s), for |u| <= 1.
# 3GPP TSG-RAN WG4, R4-165901, "Further elaboration on PA models for NR", Ericsson, 2016.
GAN_POLYNOMIAL = (
    0.999952 - 0.00981788j,
    -0.0618171 + 0.118845j,
    -1.69917 - 0.464933j,
    3.27962 + 0.829737j,
    -1.80821 - 0.454331j,
)


@dataclass(frozen=True, eq=False)
class Amplifiers:
    """The amplifiers of a node's ports:

        F(x)(n) = sum_l sum_p a_lp v(n - l) |v(n - l)|^(2p),    v = x min(1, saturation / |x|)

    Beyond the saturation amplitude the input is limited and keeps its phase: the output stays where it is at
    saturation, instead of following a polynomial where it means nothing (third order: falling again).

    Parameters
    ----------
    coefficients : complex, (num_ports, P) without memory or (num_ports, L, P); order 2p + 1 in entry p. They refer to
        samples x, so the back-off is in them. Kept as (num_ports, L, P), relative to the linear gain at band centre:
        sum_l a_l0 = 1.
    saturation : amplitude of x, a number or one per port; inf: none.
    """

    coefficients: np.ndarray
    saturation: np.ndarray | float = np.inf

    def __post_init__(self):
        a = np.asarray(self.coefficients, dtype=np.complex128)
        if a.ndim not in (2, 3) or 0 in a.shape or not np.all(np.isfinite(a)):
            raise ValueError(f"coefficients of shape {a.shape} must be finite and (num_ports, P) or (num_ports, L, P)")
        a = a[:, None] if a.ndim == 2 else a
        linear = a[..., 0].sum(axis=-1)
        if np.any(linear == 0.0):
            raise ValueError("coefficients: the linear ones must not add up to zero")
        saturation = np.asarray(self.saturation, dtype=np.float64)
        if saturation.shape not in ((), (len(a),)) or not np.all(saturation > 0.0):
            raise ValueError(f"saturation={self.saturation} must be positive, a number or one per port ({len(a)})")
        object.__setattr__(self, "coefficients", a / linear[:, None, None])
        object.__setattr__(self, "saturation", np.broadcast_to(saturation, len(a)))

    @property
    def num_ports(self) -> int:
        return len(self.coefficients)

    @property
    def num_taps(self) -> int:
        """Return L, how many samples the output depends on."""
        return self.coefficients.shape[1]

    def limit(self, x: np.ndarray) -> np.ndarray:
        """Return x, complex (num_ports, num), with what is beyond saturation brought back to it; same dtype."""
        if np.isinf(self.saturation).all():
            return x
        level = np.minimum(self.saturation, np.finfo(x.real.dtype).max).astype(x.real.dtype)[:, None]
        over = np.abs(x) > level
        if not over.any():
            return x
        return np.where(over, x * (level / np.maximum(np.abs(x), level)), x).astype(x.dtype, copy=False)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return F(x) for all but the first L - 1 samples of x, complex (num_ports, num); same dtype as x."""
        x = self.limit(x)
        a = self.coefficients.astype(x.dtype)
        past, power = self.num_taps - 1, x.real**2 + x.imag**2
        out = 0
        for lag in range(self.num_taps):
            part = slice(past - lag, x.shape[-1] - lag)
            gain = a[:, lag, -1:]
            for p in range(a.shape[-1] - 2, -1, -1):
                gain = gain * power[:, part] + a[:, lag, p : p + 1]
            out = x[:, part] * gain if lag == 0 else out + x[:, part] * gain
        return out

    def linear_response(self, cycles_per_sample: np.ndarray) -> np.ndarray:
        """Return the small-signal gain, complex128 (num_ports, ...), at frequencies (...); 1 at band centre."""
        turn = np.exp(-2j * np.pi * np.multiply.outer(np.arange(self.num_taps), cycles_per_sample))
        return self.coefficients[..., 0] @ turn


def peak_amplitude(coefficients: Sequence[complex]) -> float:
    """Return the smallest amplitude u > 0 at which |sum_p a_p u^(2p + 1)| has a maximum; inf where it only rises.

    With q = u^2 the output power is q |sum_p a_p q^p|^2, a polynomial that rises from zero to where its derivative
    first vanishes.
    """
    a = np.asarray(coefficients, dtype=np.complex128)
    power = np.polynomial.Polynomial([0.0, *np.convolve(a, a.conj()).real])
    roots = power.deriv().roots()
    peaks = roots[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0.0)].real
    return float(np.sqrt(peaks.min())) if len(peaks) else np.inf


def third_order_fit(
    back_off_db: float, coefficients: Sequence[complex] = GAN_POLYNOMIAL, *, saturation: float = 1.0
) -> np.ndarray:
    """Return [1, a_3 / a_1] of the least-squares fit a_1 u + a_3 u |u|^2 of an amplifier, complex128 (2,).

    Least mean square error for circular Gaussian u whose mean power is `back_off_db` below 1, saturation included; the
    average over its exponential power is a Gauss-Legendre rule on the probability, exact to about 1e-6.
    """
    nodes, weights = np.polynomial.legendre.leggauss(400)
    amplitude = np.sqrt(-np.log(0.5 * (1.0 - nodes))) * 10.0 ** (-back_off_db / 20.0)
    target = Amplifiers(np.asarray(coefficients)[None], saturation)(amplitude[None].astype(np.complex128))[0]
    basis = amplitude[:, None] ** np.array([1, 3])
    fit = np.linalg.solve(basis.T @ (weights[:, None] * basis), basis.T @ (weights * target))
    return fit / fit[0]


def amplifier_law(
    kind: Literal["third_order", "gan"], compression: complex = 0.0, saturation: float | None = None
) -> tuple[Sequence[complex], float]:
    """Return coefficients and saturation, as `draw_amplifiers` takes them, of a kind of amplifier.

    "third_order": u + compression u |u|^2, without saturation by default; "gan": `GAN_POLYNOMIAL`, by default up to
    |u| = 1, where it ends.
    """
    if kind not in ("third_order", "gan"):
        raise ValueError(f"kind = {kind!r}: must be one of ['third_order', 'gan']")
    coefficients, limit = (GAN_POLYNOMIAL, 1.0) if kind == "gan" else ((1.0, compression), np.inf)
    return coefficients, limit if saturation is None else saturation


def draw_amplifiers(
    rng: np.random.Generator,
    num_ports: int,
    coefficients: Sequence[complex] = GAN_POLYNOMIAL,
    *,
    back_off_db: float = 0.0,
    saturation: float | None = 1.0,
    drive_std_db: float = 0.0,
    spread: float = 0.0,
    memory: Sequence[complex] = (),
) -> Amplifiers:
    """Return the amplifiers of `num_ports` ports, alike but for their spread.

    Parameters
    ----------
    coefficients : (P,) odd orders on the amplifier's own scale u, such as `GAN_POLYNOMIAL`, `third_order_fit` or
        [1, a_3 / a_1].
    back_off_db : how far the mean power of samples of unit power lies below |u| = 1.
    saturation : amplitude |u| from which the input is limited: as a rule 1, up to where the coefficients hold (the GaN
        polynomial's output has its peak at 0.949 already); None: where the output peaks (`peak_amplitude`); inf: never.
    drive_std_db : standard deviation of the amplifiers' input level (log-normal): 1 dB higher acts like 1 dB less
        back-off. The small-signal gain does not change.
    spread : each amplifier's deviation from linear, F(u) - u, is multiplied by its own 1 + spread z, z ~ CN(0, 1).
    memory : (L - 1,) gains of the output of the earlier 1, 2 ... samples (a Hammerstein amplifier; `Amplifiers` takes
        any memory polynomial).
    """
    if not np.isfinite(back_off_db):
        raise ValueError(f"back_off_db={back_off_db} must be finite")
    if not (0.0 <= drive_std_db < np.inf and 0.0 <= spread < np.inf):
        raise ValueError(f"drive_std_db={drive_std_db} and spread={spread} must be finite and not negative")
    a = np.asarray(coefficients, dtype=np.complex128)
    if a.ndim != 1 or len(a) == 0 or a[0] == 0.0:
        raise ValueError(f"coefficients={coefficients!r} must be (P,) with a linear one that is not zero")
    a = a / a[0]
    saturation = peak_amplitude(a) if saturation is None else saturation
    drive = 10.0 ** ((drive_std_db * rng.standard_normal(num_ports) - back_off_db) / 20.0)
    deviation = spread * np.sqrt(0.5) * (rng.standard_normal(num_ports) + 1j * rng.standard_normal(num_ports))
    own = np.tile(a, (num_ports, 1))
    own[:, 1:] *= (1.0 + deviation)[:, None] * drive[:, None] ** (2.0 * np.arange(1, len(a)))
    return Amplifiers(own[:, None] * np.array([1.0, *memory])[:, None], saturation / drive)


class AmplifierBank:
    """The amplifiers of a network's nodes at work on consecutive samples.

    amplifiers : per node, None: linear. rows : the ports of each.
    """

    def __init__(self, amplifiers: Sequence[Amplifiers | None], rows: Sequence[slice]):
        self._active = [(a, at) for a, at in zip(amplifiers, rows, strict=True) if a is not None]
        self.has_memory = any(a.num_taps > 1 for a, _ in self._active)
        self._responses = list(amplifiers)
        self._ports = [at.stop - at.start for at in rows]
        self.flush()

    def __bool__(self) -> bool:
        return bool(self._active)

    def flush(self) -> None:
        """Forget the past: before the next sample was silence."""
        self._past = [np.zeros((a.num_ports, a.num_taps - 1), np.complex64) for a, _ in self._active]

    def transmit(self, signal: np.ndarray) -> None:
        """Amplify the rows of `signal`, complex64 (P, num), in place."""
        for (amplifiers, rows), past in zip(self._active, self._past, strict=True):
            x = signal[rows] if amplifiers.num_taps == 1 else np.hstack([past, signal[rows]])
            signal[rows] = amplifiers(x)

    def commit(self, x: np.ndarray) -> None:
        """Keep what later samples need of the samples x (P, num) that went in."""
        for k, (amplifiers, rows) in enumerate(self._active):
            if amplifiers.num_taps > 1:
                joined = np.hstack([self._past[k], x[rows]])
                self._past[k] = joined[:, joined.shape[1] - amplifiers.num_taps + 1 :]

    def linear_response(self, node: int, cycles_per_sample: np.ndarray) -> np.ndarray:
        """Return the small-signal gain of a node's ports, (num_ports, ...), at frequencies (...)."""
        amplifiers = self._responses[node]
        if amplifiers is None:
            return np.ones((self._ports[node], *np.shape(cycles_per_sample)))
        return amplifiers.linear_response(cycles_per_sample)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node knows of its sample clock, and by how much it moves its samples in time because of it."""

import numpy as np


class ClockCorrection:
    r"""Kalman filter for the offset and the rate error of a node's clock against the network's time.

    The node converts what belongs to network sample n when sample n + o(n) is due, late for positive o,

    .. math:: o(n) = o(n_0) + \rho\,(n - n_0)

    with a rate error :math:`\rho` (samples per sample) that walks randomly. It therefore uses its device samples
    n + `shift` for samples n, and delays what it sends by `fraction` (what it receives by -`fraction`) with
    `timing.fractional_shift`: offset + shift + fraction = 0. Without a measurement both are 0.

    Where sample clock and carrier come from one reference, an oscillator that is slow by f Hz at `center_freq` makes
    the clock late by f / center_freq samples per sample: the first measurement of the carrier offset of the received
    leader, f = f_leader - f_follower, gives the rate at once.

    Parameters
    ----------
    samp_rate : float
    rate_std : float
        Standard deviation of the rate before anything is known of it; 3e-6 suits oscillators within some ppm.
    rate_walk : float
        Standard deviation that the rate gains in a second, growing with the root of time.
    gate : float
        Measurements farther than this many predicted standard deviations from the prediction are not applied; the
        third in a row begins anew: then it is the clock that has jumped.
    floor_samples : float
        Least standard deviation of a measurement: multipath and filters are not in the one that estimators predict.
    """

    def __init__(
        self,
        samp_rate: float,
        *,
        rate_std: float = 3e-6,
        rate_walk: float = 1e-9,
        gate: float = 6.0,
        floor_samples: float = 1e-3,
    ):
        settings = {"samp_rate": samp_rate, "rate_std": rate_std, "gate": gate, "floor_samples": floor_samples}
        for name, value in settings.items():
            if not value > 0.0:
                raise ValueError(f"{name}={value} must be positive")
        if not rate_walk >= 0.0:
            raise ValueError(f"rate_walk={rate_walk} must not be negative")
        self._walk = rate_walk**2 / samp_rate  # variance per sample
        self._rate_std, self._gate, self._floor = rate_std, gate, floor_samples
        self._sample: int | None = None
        self._state = np.zeros(2)
        self._covariance = np.zeros((2, 2))
        self._rejected = 0

    @property
    def is_set(self) -> bool:
        """Whether there has been a measurement."""
        return self._sample is not None

    @property
    def rate(self) -> float:
        """Estimated growth of the offset, samples per sample."""
        return float(self._state[1])

    @property
    def rate_std(self) -> float:
        """Predicted standard deviation of `rate` at the last measurement."""
        return float(np.sqrt(self._covariance[1, 1])) if self.is_set else self._rate_std

    def offset(self, sample: float) -> float:
        """Estimated offset o(sample) [samples]; 0 before the first measurement."""
        return float(self._state[0] + self._state[1] * (sample - self._sample)) if self.is_set else 0.0

    def shift(self, sample: int) -> int:
        """Whole samples by which device time is ahead of network time in a slot that begins at `sample`."""
        return -round(self.offset(sample))

    def fraction(self, sample: int) -> float:
        """Delay in [-0.5, 0.5] samples of what is sent in that slot; what is received is delayed by its negative."""
        return -self.offset(sample) - self.shift(sample)

    def predicted_std(self, sample: float) -> float:
        """Standard deviation of the offset [samples] as predicted for `sample`; infinite before a measurement."""
        return float(np.sqrt(self._predict(sample)[1][0, 0])) if self.is_set else np.inf

    def update(
        self,
        offset_samples: float,
        std_samples: float,
        sample: int,
        *,
        rate: float | None = None,
        rate_std: float | None = None,
    ) -> bool:
        """Take a measured offset; return whether it was applied.

        Parameters
        ----------
        offset_samples, std_samples : float
            The offset o without any correction, and its standard deviation.
        sample : int
            Absolute sample to which it belongs; not before the last one.
        rate, rate_std : float, optional
            Measured rate error, used when the filter begins.

        Raises
        ------
        ValueError
            If the measurement is not finite or its deviation not positive, or `sample` lies in the past.
        """
        if not (np.isfinite(offset_samples) and 0.0 < std_samples < np.inf):
            raise ValueError(f"offset_samples={offset_samples} must be finite, std_samples={std_samples} positive")
        if self.is_set and sample < self._sample:
            raise ValueError(f"sample={sample} must not be before the last measurement, {self._sample}")
        variance = max(std_samples, self._floor) ** 2
        if not self.is_set:
            self._begin(offset_samples, variance, sample, rate, rate_std)
            return True
        state, covariance = self._predict(sample)
        innovation, spread = offset_samples - state[0], covariance[0, 0] + variance
        if innovation**2 > self._gate**2 * spread:
            self._rejected += 1
            if self._rejected >= 3:
                self._begin(offset_samples, variance, sample, self.rate, self.rate_std)
            return self._rejected == 0
        gain = covariance[:, 0] / spread
        self._state = state + gain * innovation
        self._covariance = covariance - np.outer(gain, covariance[0])
        self._sample, self._rejected = sample, 0
        return True

    def _begin(self, offset: float, variance: float, sample: int, rate: float | None, rate_std: float | None) -> None:
        """Forget what was known but the rate, if one is given."""
        self._state = np.array([offset, 0.0 if rate is None else rate])
        spread = self._rate_std if rate is None or rate_std is None else rate_std
        self._covariance = np.diag([variance, spread**2])
        self._sample, self._rejected = sample, 0

    def _predict(self, sample: float) -> tuple[np.ndarray, np.ndarray]:
        """Return state and covariance at `sample`, not before the last measurement for the covariance to hold."""
        steps = sample - self._sample
        grow = np.array([[1.0, steps], [0.0, 1.0]])
        late = max(steps, 0.0)
        walk = self._walk * np.array([[late**3 / 3, late**2 / 2], [late**2 / 2, late]])
        return grow @ self._state, grow @ self._covariance @ grow.T + walk

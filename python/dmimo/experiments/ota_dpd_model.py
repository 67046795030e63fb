# SPDX-License-Identifier: GPL-3.0-or-later
r"""The array of the over-the-air predistortion figures: gains between its antennas, its amplifiers, and its noise.

.. math:: y_{mn,k} = r_m h_{mn} t_n F_n(x_k) + w, \qquad g_{mn} = r_m h_{mn} t_n

Antenna n sends, m receives; F_n(x) = x for small x. Samples of unit mean power are 0 dB everywhere.

The paper's numbers for the receivers' gains, the coupling, the back-off and the antennas are lost in its text. All that
stands for them here is an assumption, and a key of each figure's configuration:

* 4 x 25 antennas at half a wavelength, and `simulation.coupling.CouplingLaw` with a perturbation 10 dB below it;
* t and r of uniform phase and log-normal magnitude (`gains_std_db`), mean |t|^2 of an array 1;
* amplifiers that are alike but for `drive_std_db` and `spread`. With none of these an amplifier that is not
  predistorted would turn all coefficients alike, which no calibration sees.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.amplifier_model import amplify
from ..core.mutual_coupling import reference_snr
from ..core.predistortion import design_pilots, predistort
from ..simulation.amplifiers import GAN_POLYNOMIAL, draw_amplifiers, third_order_fit
from ..simulation.coupling import CouplingLaw, PlanarArray
from ..simulation.hardware import draw_gains

# Of all figures; the keys of `coupling` are those of `CouplingLaw`.
ARRAY = {"rows": 4, "columns": 25, "spacing_wavelengths": 0.5, "coupling": {"perturbation_db": -10.0},
         "gains_std_db": 1.0, "drive_std_db": 0.5, "spread": 0.1, "back_off_db": 10.0}  # fmt: skip
SNR_LABEL = "reference SNR: one pilot, weakest link [dB]"


class CoupledArray(NamedTuple):
    """gains (M, M), g; coupling (M, M), h; t and r (M,); coefficients (M, P) of the amplifiers F; saturation (M,)."""

    gains: NDArray
    coupling: NDArray
    t: NDArray
    r: NDArray
    coefficients: NDArray
    saturation: NDArray

    @property
    def c(self) -> NDArray:
        """True calibration t / r (M,)."""
        return self.t / self.r

    def noise_std(self, snr_db: float) -> float:
        """Standard deviation of w at a reference SNR, for pilots of unit mean power."""
        return float(np.sqrt(reference_snr(self.gains, 1.0) / 10.0 ** (snr_db / 10.0)))


def draw(configuration: Mapping, rng: np.random.Generator) -> CoupledArray:
    """One array with its amplifiers: "third_order" fits of the GaN polynomial (without saturation), or "gan" itself."""
    array = PlanarArray(*(configuration[key] for key in ("rows", "columns", "spacing_wavelengths")))
    coupling = CouplingLaw(**configuration["coupling"]).matrix(array, rng)
    t, r = (draw_gains(rng, array.num_elements, std_db=configuration["gains_std_db"]) for _ in range(2))
    t = t / np.sqrt(np.mean(np.abs(t) ** 2))
    amplifiers = draw_amplifiers(
        rng, array.num_elements, *_amplifier(configuration["amplifier"], configuration["back_off_db"]),
        back_off_db=configuration["back_off_db"], drive_std_db=configuration["drive_std_db"],
        spread=configuration["spread"], saturation=np.inf if configuration["amplifier"] == "third_order" else 1.0,
    )  # fmt: skip
    gains = r[:, None] * coupling * t
    return CoupledArray(gains, coupling, t, r, amplifiers.coefficients[:, 0], amplifiers.saturation)


def _amplifier(kind: str, back_off_db: float) -> tuple:
    if kind not in ("third_order", "gan"):
        raise ValueError(f'amplifier = "{kind}" must be "third_order" or "gan"')
    return (third_order_fit(back_off_db) if kind == "third_order" else GAN_POLYNOMIAL,)


def pilots(configuration: Mapping, num_pilots: int) -> NDArray:
    """Data-like pilots (K,) of about unit mean power, the largest `back_off_db` above: at |u| = 1 of the amplifier."""
    back_off_db = configuration["back_off_db"]
    peak = 10.0 ** (back_off_db / 20.0)
    return design_pilots(num_pilots, "data_like", peak=peak, backoff_db=back_off_db)


def received(array: CoupledArray, x: NDArray) -> NDArray:
    """Noiseless y (M, M, K) of the pilots x (K,) through amplifiers without saturation, or with pilots below it."""
    return array.gains[:, :, None] * amplify(x, array.coefficients)


def linearised_gain(coefficients: NDArray, estimate: NDArray) -> NDArray:
    """Gain F(u) / x (M,) that is left at a sample x of unit power whose predistorter u was made for the estimate."""
    u = predistort(np.ones((len(coefficients), 1), complex), estimate)
    return amplify(u, coefficients)[:, 0]


def complex_normal(rng: np.random.Generator, *shape: int) -> NDArray:
    """CN(0, 1), complex128 of that shape."""
    return np.sqrt(0.5) * rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0]


def place(configuration: Mapping, key: str, among: str) -> int:
    """Where the number `key` stands in the list `among`; ValueError if it does not."""
    if configuration[key] not in configuration[among]:
        raise ValueError(f"{key} = {configuration[key]} must be one of {among}, {configuration[among]}")
    return configuration[among].index(configuration[key])


def assumptions(configuration: Mapping) -> str:
    """What the paper does not say, in words for a caption."""
    law = CouplingLaw(**configuration["coupling"])
    fall = (f"falling by {law.slope_db_per_wavelength:g} dB per wavelength" if law.kind == "linear"
            else f"falling with distance to the power {law.exponent:g}")  # fmt: skip
    words = (f"assumed: {configuration['rows']} x {configuration['columns']} antennas, neighbours coupled by "
             f"{law.gain_db:g} dB and {fall}, chains of random phase and {configuration['gains_std_db']:g} dB spread, "
             f"amplifiers at {configuration['back_off_db']:g} dB back-off with {configuration['drive_std_db']:g} dB "
             f"spread of drive and {100 * configuration['spread']:g} % of nonlinearity")  # fmt: skip
    return words.replace(" -", " \N{MINUS SIGN}")

# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figures 13 to 15 of the BeamSync paper, and one of waveforms: error of the carrier frequency.

B sends orthonormal pilots, A beams :math:`x_f` (N_f) along the dominant direction of what it received, B estimates f
from :math:`Y_B = b\, x_f^T D + W`, :math:`b = c_A G_e^T a_f`, :math:`D = \mathrm{diag}(e^{2j \pi f n T})`, T = 1/14 ms.
Errors are f T in cycles per sample. The paper's offset is Delta = -f; its real sinusoid is not specified and is here
:math:`\sqrt 2 \sin(2 \pi (n + 1/2) / N_f)`. The pilots turn with the offset as well, which for L = M changes the
received :math:`Y_A` by a unitary matrix on the right only, not its dominant direction.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import synchronization
from ..core.synchronization_bounds import energy_spread, frequency_offset_crlb, largest_eigenvalue
from . import beamsync_model as model
from . import error_statistics as statistics
from . import fixed_grid_of_beams as grid
from .registry import register
from .trials import SNR_LABEL, generators, noise_variances, stack, steps

_DEFAULTS = {"snr_db": steps(-20, 30, 5), "sample_interval_s": 1e-3 / 14, "max_offset_hz": 300.0,
             "search_hz": 400.0, "gains": "unit"}


def sinusoid(num_samples: int) -> NDArray:
    """One turn of a real sinusoid of unit mean power, symmetric about the middle of the burst but for its sign."""
    return np.sqrt(2.0) * np.sin(2.0 * np.pi * (np.arange(num_samples) + 0.5) / num_samples)


WAVEFORMS: Mapping[str, tuple[str, Callable[[int], NDArray]]] = {
    "sinusoid": ("sinusoid, one turn", sinusoid),
    "constant": ("constant modulus", np.ones),
    "peak_limited": ("energy at both ends, peaks of 3 dB", lambda num: synchronization.edge_energy_waveform(
        num, peak_power=2.0)),
    "ends": ("all energy in the two end samples", synchronization.edge_energy_waveform),
}  # fmt: skip


class Link:
    """Draws of a batch of trials with M antennas at each end, and bursts of N samples received through them."""

    def __init__(self, configuration: Mapping, rngs: Sequence[np.random.Generator], num: int, num_samples: int):
        self._interval, self._search = configuration["sample_interval_s"], configuration["search_hz"]
        self.draws = model.concatenate([
            model.draw_pairs(rng, 1, num, num, num_samples, gains=configuration["gains"], dtype=np.complex64)
            for rng in rngs
        ])
        self._h = grid.beam_channel(self.draws.g_e)
        self.beams = grid.stack([grid.draw_noise(rng, num, num, num_samples) for rng in rngs])
        self._noise = np.concatenate([model.complex_normal(rng, (1, num, num_samples)) for rng in rngs])
        self.offset_hz = configuration["max_offset_hz"] * np.array([rng.uniform(-1.0, 1.0) for rng in rngs])
        self._energy = np.abs(self.draws.c_leader) ** 2 * largest_eigenvalue(self.draws.g_e)

    def gain(self, noise_var: float) -> NDArray:
        """b (T, M) that BeamSync's stage I leads to."""
        # The pilots' noise is that of the other direction's: M_A = M_B, and it is used here only.
        noise = np.sqrt(noise_var, dtype=np.float32) * self.draws.pilot_noise
        received = self.draws.c_follower[:, None, None] * self.draws.g_e + noise
        a = synchronization.dominant_direction(received, method="power")
        return self.draws.c_leader[:, None] * np.einsum("tij,ti->tj", self.draws.g_e, a)

    def beamsync(self, gain: NDArray, x: NDArray, noise_var: float, offset_hz: ArrayLike) -> NDArray:
        """Error of BeamSync (T,) in cycles per sample."""
        return self._error(gain, x, noise_var, offset_hz, slice(None))

    def fgb(self, x: NDArray, noise_var: float, offset_hz: ArrayLike, reading: grid.Reading) -> NDArray:
        """Error of a fixed grid of beams (T,) in cycles per sample."""
        sent, received = grid.transmit_and_receive_beams(self._h, self.draws.c_follower, noise_var, self.beams, reading)
        gain = self.draws.c_leader[:, None] * np.take_along_axis(self._h, sent[:, None, None], axis=1)[:, 0]
        return self._error(gain, x, noise_var, offset_hz, received)

    def bound(self, x: NDArray, noise_var: float) -> NDArray:
        """Eq. (35) along u_1, (T,) in (cycles per sample)^2."""
        return frequency_offset_crlb(x, self._energy, noise_var)

    def with_bounds(self, x: NDArray, noise_var: float, offset_hz: ArrayLike) -> dict[str, NDArray]:
        """Error of BeamSync, eq. (35) along u_1, and eq. (35) along the direction that stage I found, (T,) each."""
        gain = self.gain(noise_var)
        found = frequency_offset_crlb(x, np.sum(np.abs(gain) ** 2, axis=-1), noise_var)
        return {"error_beamsync": self.beamsync(gain, x, noise_var, offset_hz), "bound": self.bound(x, noise_var),
                "bound_found": found}

    def _error(self, gain: NDArray, x: NDArray, noise_var: float, offset_hz: ArrayLike, rows) -> NDArray:
        """Error from the antennas or beams `rows`: all (a slice), those chosen (T,), or the strongest (None)."""
        offset_hz = np.broadcast_to(offset_hz, len(gain))
        turn = np.exp(2j * np.pi * self._interval * offset_hz[:, None] * np.arange(len(x)))
        y = gain[:, :, None] * (x * turn)[:, None, :] + np.sqrt(noise_var) * self._noise
        if not isinstance(rows, slice):
            rows = np.argmax(np.sum(np.abs(y) ** 2, axis=-1), axis=-1) if rows is None else rows
            y = np.take_along_axis(y, rows[:, None, None], axis=1)
        found = synchronization.frequency_offset(y, x, self._interval, max_offset=self._search)
        return (found - offset_hz) * self._interval


def _axes(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    return {"caption": statistics.caption(len(arrays["bound"]), configuration), "x_label": SNR_LABEL,
            "y_label": f"{statistics.statistic_name(configuration['gains'])} of f T [cycles per sample]",
            "x": list(configuration["snr_db"])}


# Where the frequency curves are compared [cycles per sample].
_WANTED = 3e-4


def _spacing_db(snr_db: Sequence[float], better: Sequence[float], worse: Sequence[float]) -> float | None:
    return statistics.gain_db(statistics.snr_at(snr_db, better, _WANTED), statistics.snr_at(snr_db, worse, _WANTED))


# -- figures 13 and 14 ------------------------------------------------------------------------------------------------


def summarise_13(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """RMSE of BeamSync and FGB with the bound, the mean of squared error over eq. (35), and the gain over FGB."""
    gains, snr_db = configuration["gains"], configuration["snr_db"]
    labels = {"beamsync": "BeamSync", **grid.READINGS}
    curves = {key: statistics.error_curve(arrays[f"error_{key}"], gains) for key in labels}
    ratio = np.mean(arrays["error_beamsync"] ** 2 / arrays["bound_found"], axis=0)
    return {
        **_axes(configuration, arrays),
        "title": f"Carrier frequency, {configuration['num_antennas']} antennas each, "
                 f"N_f = {configuration['num_samples']}",
        "curves": [{"label": labels[key], **curve} for key, curve in curves.items()],
        "dashed": [{"label": "Cramér-Rao bound, eq. (35)", "values": statistics.bound_curve(arrays["bound"], gains)}],
        "mean_square_over_bound": ratio.tolist(),
        "gain_over_fgb_db": {labels[key]: _spacing_db(snr_db, curves["beamsync"]["mean"], curves[key]["mean"])
                             for key in grid.READINGS},
    }


@register(
    "beamsync-13",
    title="Frequency error against SNR: BeamSync, fixed grid of beams, bound",
    summarise=summarise_13,
    plot="error_curves",
    defaults={**_DEFAULTS, "num_antennas": 16, "num_samples": 10, "snr_db": steps(-20, 30, 2.5)},
    trials=4000,
    block=200,
)
def beamsync_13(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Frequency errors (trials, SNRs), offsets uniform in +-300 Hz, searched within +-400 Hz.

    The search is limited to what the carriers can differ by, which also bounds the error where there is no signal. The
    dashed bound is along the true u_1; ``mean_square_over_bound`` of the summary holds each trial against eq. (35)
    along the direction that its own stage I found. The gain over FGB is read at 3e-4 cycles per sample.
    """
    num_samples = configuration["num_samples"]
    link = Link(configuration, generators(seeds), configuration["num_antennas"], num_samples)
    x = sinusoid(num_samples)
    return stack([{
        **link.with_bounds(x, noise_var, link.offset_hz),
        **{f"error_{reading}": link.fgb(x, noise_var, link.offset_hz, reading) for reading in grid.READINGS},
    } for noise_var in noise_variances(configuration)])  # fmt: skip


def summarise_14(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by antennas, and the gain per doubling at 3e-4 cycles per sample."""
    gains, snr_db = configuration["gains"], configuration["snr_db"]
    families = []
    for index, num in enumerate(configuration["num_antennas"]):
        curves = [statistics.error_curve(arrays[f"error_{key}"][:, index], gains) for key in ("beamsync", "sweep")]
        families.append({"label": f"M = {num}", "curves": curves,
                         "dashed": statistics.bound_curve(arrays["bound"][:, index], gains)})
    doubling = [{
        "from": num, "simulated": _spacing_db(snr_db, after["curves"][0]["mean"], before["curves"][0]["mean"]),
        "bound": _spacing_db(snr_db, after["dashed"], before["dashed"]),
        "FGB": _spacing_db(snr_db, after["curves"][1]["mean"], before["curves"][1]["mean"]),
    } for before, after, num in zip(families[:-1], families[1:], configuration["num_antennas"], strict=False)]
    return {
        **_axes(configuration, arrays), "title": f"Carrier frequency, M antennas each, N_f = "
        f"{configuration['num_samples']}", "kinds": ["BeamSync", grid.READINGS["sweep"]],
        "bound": "Cramér-Rao bound, eq. (35)", "families": families, "gain_per_doubling_db": doubling,
    }  # fmt: skip


@register(
    "beamsync-14",
    title="Frequency error against SNR for 4 to 64 antennas",
    summarise=summarise_14,
    plot="curve_families",
    defaults={"num_antennas": [4, 8, 16, 32, 64], "num_samples": 10, **_DEFAULTS},
    trials=2000,
    block=200,
)
def beamsync_14(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Frequency errors (trials, numbers of antennas, SNRs); each M must be twice the one before.

    As for the phase, doubling M gains what the largest eigenvalue does, more than 3 dB:
    see `beamsync_phase.beamsync_8`.
    """
    rngs, x, sizes = generators(seeds), sinusoid(configuration["num_samples"]), []
    for num in configuration["num_antennas"]:
        link = Link(configuration, rngs, num, len(x))
        sizes.append(stack([{
            **link.with_bounds(x, noise_var, link.offset_hz),
            "error_sweep": link.fgb(x, noise_var, link.offset_hz, "sweep"),
        } for noise_var in noise_variances(configuration)]))  # fmt: skip
    return stack(sizes, axis=1)


# -- figure 15 --------------------------------------------------------------------------------------------------------


def summarise_15(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by burst length over the offset, and what doubling the length gains."""
    gains, kinds = configuration["gains"], configuration["num_antennas"]
    families = []
    for index, num_samples in enumerate(configuration["num_samples"]):
        curves = [statistics.error_curve(arrays["error"][:, kind, index], gains) for kind in range(len(kinds))]
        dashed = [statistics.bound_curve(arrays["bound"][:, kind, index], gains) for kind in range(len(kinds))]
        families.append({"label": f"N_f = {num_samples}", "curves": curves, "dashed": dashed})
    mean_square = np.mean(arrays["error"] ** 2, axis=(0, 3))
    return {
        **_axes(configuration, arrays),
        "title": f"Carrier frequency against its offset, {configuration['snr_db'][0]:g} dB",
        "x_label": "frequency offset f [Hz]", "x": list(configuration["offsets_hz"]),
        "kinds": [f"M = {num}" for num in kinds], "bound": "Cramér-Rao bound, eq. (35)", "families": families,
        "gain_per_doubling_of_length_db": (-10.0 * np.diff(np.log10(mean_square), axis=1)).tolist(),
    }  # fmt: skip


@register(
    "beamsync-15",
    title="Frequency error against the offset for several burst lengths and numbers of antennas",
    summarise=summarise_15,
    plot="curve_families",
    defaults={**_DEFAULTS, "num_antennas": [16, 64], "num_samples": [5, 10, 20, 40], "snr_db": [20.0],
              "offsets_hz": steps(-300, 300, 100)},
    trials=1000,
)
def beamsync_15(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    r"""Frequency errors (trials, numbers of antennas, lengths, offsets) at one SNR; each N_f twice the one before.

    The error does not depend on the offset, since the search has no grid and a margin.

    Where the paper's sentence does not hold: "by doubling N_f, the SNR improves by 6 dB". At unit power the bound has
    :math:`\sum (n - n_c)^2 x^2 \sim N_f^3`, which is 9 dB; 6 dB are left if the total energy stays the same.
    """
    (noise_var,) = noise_variances(configuration)
    sizes = []
    for num in configuration["num_antennas"]:
        lengths = []
        for num_samples in configuration["num_samples"]:
            # From their beginnings, so that all lengths see the same channels.
            link, x = Link(configuration, generators(seeds), num, num_samples), sinusoid(num_samples)
            gain, bound = link.gain(noise_var), link.bound(x, noise_var)
            lengths.append(stack([{"error": link.beamsync(gain, x, noise_var, offset), "bound": bound}
                                   for offset in configuration["offsets_hz"]]))
        sizes.append(stack(lengths, axis=1))
    return stack(sizes, axis=1)


# -- waveforms --------------------------------------------------------------------------------------------------------


def summarise_waveform(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """One curve per waveform and its bound, and the gain over the sinusoid by energy spread and as simulated."""
    gains, num_samples, snr_db = configuration["gains"], configuration["num_samples"], configuration["snr_db"]
    families = [{"label": label, "curves": [statistics.error_curve(arrays["error_beamsync"][:, index], gains)],
                 "dashed": statistics.bound_curve(arrays["bound"][:, index], gains)}
                for index, (label, _) in enumerate(WAVEFORMS.values())]
    spread = [energy_spread(make(num_samples)) for _, make in WAVEFORMS.values()]
    return {
        **_axes(configuration, arrays), "title": f"Carrier frequency by waveform, {configuration['num_antennas']} "
        f"antennas each, N_f = {num_samples}", "kinds": ["BeamSync"], "bound": "Cramér-Rao bound, eq. (35)",
        "families": families,
        "gain_over_sinusoid_db": [
            {"waveform": family["label"], "bound": float(10.0 * np.log10(value / spread[0])),
             "simulated": _spacing_db(snr_db, family["curves"][0]["mean"], families[0]["curves"][0]["mean"])}
            for family, value in zip(families, spread, strict=True)],
    }  # fmt: skip


@register(
    "beamsync-waveform",
    title="Frequency error against SNR: sinusoid, constant modulus, energy at both ends",
    summarise=summarise_waveform,
    plot="curve_families",
    defaults={**_DEFAULTS, "num_antennas": 16, "num_samples": 10, "snr_db": steps(-20, 30, 2.5)},
    trials=2000,
    block=200,
)
def beamsync_waveform(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Frequency errors (trials, waveforms, SNRs) at the same energy N_f, for offsets known within +-300 Hz.

    The paper's sinusoid is 0.7 dB worse than constant modulus; with all energy in the two end samples the error is 4.6
    dB better than the sinusoid's. Two pulses N_f - 1 samples apart are ambiguous beyond 1 / (2 (N_f - 1) T), 778 Hz
    here; with peaks of at most 3 dB over the mean the gain is 3.0 dB.
    """
    link = Link(configuration, generators(seeds), configuration["num_antennas"], configuration["num_samples"])
    waveforms = [make(configuration["num_samples"]) for _, make in WAVEFORMS.values()]
    return stack([stack([link.with_bounds(x, noise_var, link.offset_hz) for x in waveforms])
                   for noise_var in noise_variances(configuration)])

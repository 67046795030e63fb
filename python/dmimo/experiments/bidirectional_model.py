# SPDX-License-Identifier: GPL-3.0-or-later
r"""Networks of TRPs and UEs without a common clock as a matrix model: channels of both directions at any time.

Between port m of a TRP and port n of a UE, on subcarrier k from band centre, at time t,

.. math::
    G_{mn} = \beta^r_m \beta^t_n \bar H_{mn}(k)\, e^{-2j \pi k \Delta (\tau_n - \tau_m)} e^{+j (\theta_n - \theta_m)(t)}
    \qquad
    H_{mn} = \beta^t_m \beta^r_n \bar H_{mn}(k)\, e^{+2j \pi k \Delta (\tau_n - \tau_m)} e^{-j (\theta_n - \theta_m)(t)}

    \bar H_{mn}(k) = \sum_q a_{mnq} e^{-2j \pi k \Delta d_{mnq}}, \qquad \theta_x(t) = 2 \pi f_x t + \text{phase noise}

G uplink, H downlink, both in units of the noise: a received resource element has noise CN(0, 1), and :math:`|G|^2` is
an SNR per resource element. Hence :math:`C = G/H = c^U_n / c^B_m` with :math:`c_X = (\beta^t / \beta^r)
e^{-4j \pi k \Delta \tau_X} e^{+2j \theta_X(t)}`.

Link budget: free-space loss :math:`20 \log_{10}(4 \pi d f_c / c)`, 110.3 dB at 300 m and 26 GHz; power and noise over
the bandwidth of 200 MHz, no array gain, noise figure 0 dB: 10.7 dB per resource element at 30 dBm.

References
----------
Bidirectional calibration (CARS), eq. (9) to (11), table I. Deviations: (10b) has the gains of the other direction; the
RF gains' amplitude is log-normal, ln|b| ~ N(0, 0.1), since an amplitude N(0, 0.1) would be none; where the nodes stand,
the noise figure, and how the power is spread are not in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

LIGHT_M_S = 299792458.0
SPACING_HZ = 120e3
# OFDM symbol with its prefix, of table I, and the period in which uplink and downlink alternate.
SYMBOL_S = (2048 + 144) / (2048 * SPACING_HZ)
PATTERN_S = 0.625e-3
# Scattered paths arrive at most so much after the direct one: the cyclic prefix lasts 586 ns.
_LONGEST_EXCESS_S = 400e-9


@dataclass(frozen=True)
class Scene:
    """What networks are drawn from; every value is a JSON value, the defaults are those of table I.

    Attributes
    ----------
    num_trp, num_ue : AAUs of the two sides.
    trp_ports, ue_ports : ports of an AAU, 1 or 2; they share its oscillator and clock, and have two polarisations.
    carrier_hz : carrier frequency.
    power_dbm : of every port, over `bandwidth_hz`; pilots on a comb are not boosted.
    bandwidth_hz, noise_dbm_hz, noise_figure_db : make the noise.
    facade_m : the TRPs stand evenly over this length, |y| <= facade_m / 2, x = 0.
    distance_m, area_m : the UEs stand uniformly in the square of side area_m around (distance_m, 0).
    equal_path_loss : all links have that of distance_m.
    shadowing_db : standard deviation of a log-normal gain of each pair of AAUs.
    extra_loss_db : of all links, such as walls.
    gain_std : standard deviation of ln|b|.
    max_delay_s, max_frequency_ppb : clock offsets and oscillator offsets are uniform within.
    linewidth_hz : of each oscillator, Wiener phase noise.
    cross_polar_db : power of a co-polarised over that of a cross-polarised path, with 2 ports.
    line_of_sight : whether there is a direct path.
    num_scattered : number of scattered paths, CN(0, .) with exponentially distributed excess delay.
    rice_factor_db : power of the direct over that of all scattered paths, if there are both.
    delay_spread_s : mean excess delay.
    """

    num_trp: int = 8
    num_ue: int = 8
    trp_ports: int = 1
    ue_ports: int = 1
    carrier_hz: float = 26e9
    power_dbm: float = 30.0
    bandwidth_hz: float = 200e6
    noise_dbm_hz: float = -174.0
    noise_figure_db: float = 0.0
    facade_m: float = 80.0
    distance_m: float = 300.0
    area_m: float = 80.0
    equal_path_loss: bool = False
    shadowing_db: float = 0.0
    extra_loss_db: float = 0.0
    gain_std: float = 0.1
    max_delay_s: float = 10e-9
    max_frequency_ppb: float = 30.0
    linewidth_hz: float = 0.0
    cross_polar_db: float = 20.0
    line_of_sight: bool = True
    num_scattered: int = 0
    rice_factor_db: float = 10.0
    delay_spread_s: float = 30e-9

    def __post_init__(self):
        for name in ("num_trp", "num_ue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("trp_ports", "ue_ports"):
            if getattr(self, name) not in (1, 2):
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or 2, one per polarisation")
        if self.num_scattered < 0 or not (self.line_of_sight or self.num_scattered):
            raise ValueError(f"num_scattered={self.num_scattered} with line_of_sight={self.line_of_sight} is no path")

    @property
    def snr_db_at_0_db_gain(self) -> float:
        """SNR per resource element of a port through a channel of gain 1."""
        noise_dbm = self.noise_dbm_hz + self.noise_figure_db + 10.0 * np.log10(self.bandwidth_hz)
        return self.power_dbm - noise_dbm

    def path_loss_db(self, distance_m: ArrayLike) -> NDArray:
        """Free-space path loss."""
        return 20.0 * np.log10(4.0 * np.pi * np.asarray(distance_m, float) * self.carrier_hz / LIGHT_M_S)


@dataclass(frozen=True, eq=False)
class Drop:
    """T networks, as `draw` makes them, seen by their ports: M of TRPs, N of UEs.

    Attributes
    ----------
    scene : what they were drawn from.
    transmit_trp, receive_trp, transmit_ue, receive_ue : (T, M), (T, N) RF gains b^t and b^r.
    tau_trp_s, tau_ue_s : (T, M), (T, N) one-way clock offsets.
    frequency_trp_hz, frequency_ue_hz : (T, M), (T, N).
    noise_trp_rad, noise_ue_rad : (T, M, L), (T, N, L) phase noise at `times_s`.
    times_s : (L,) ascending; empty without phase noise.
    path_gain, path_delay_s : (T, M, N, Q), a in units of the noise and d.
    link_snr : (T, M, N) mean over fading, per resource element and without the RF gains.
    trp_of_port, ue_of_port : (M,), (N,) AAU that each port belongs to.
    """

    scene: Scene
    transmit_trp: NDArray
    receive_trp: NDArray
    transmit_ue: NDArray
    receive_ue: NDArray
    tau_trp_s: NDArray
    tau_ue_s: NDArray
    frequency_trp_hz: NDArray
    frequency_ue_hz: NDArray
    noise_trp_rad: NDArray
    noise_ue_rad: NDArray
    times_s: NDArray
    path_gain: NDArray
    path_delay_s: NDArray
    link_snr: NDArray
    trp_of_port: NDArray
    ue_of_port: NDArray

    def uplink(self, subcarriers: ArrayLike, time_s: ArrayLike = 0.0) -> NDArray:
        """G (T, M, N, K).

        Parameters
        ----------
        subcarriers : (K,), or (M, N, K) as `ofdm.CombMapping.subcarriers` gives them, from band centre.
        time_s : scalar; or (S,), then the result has a first axis more, (S, T, M, N, K). With phase noise, times that
            `draw` was given.
        """
        gains = self.receive_trp[..., :, None] * self.transmit_ue[..., None, :]
        return (gains[..., None] * self.air(subcarriers)) * self._turn(subcarriers, time_s)

    def downlink(self, subcarriers: ArrayLike, time_s: ArrayLike = 0.0) -> NDArray:
        """H (T, M, N, K); parameters as `uplink`."""
        gains = self.transmit_trp[..., :, None] * self.receive_ue[..., None, :]
        return (gains[..., None] * self.air(subcarriers)) * self._turn(subcarriers, time_s).conj()

    def coefficients(self, subcarriers: ArrayLike, time_s: ArrayLike = 0.0) -> tuple[NDArray, NDArray]:
        """(c_trp (T, M, K), c_ue (T, N, K)) on subcarriers (K,); `time_s` as in `uplink`."""
        k = np.asarray(subcarriers)
        theta = self.phases(time_s)
        sides = (
            (self.transmit_trp, self.receive_trp, self.tau_trp_s),
            (self.transmit_ue, self.receive_ue, self.tau_ue_s),
        )
        return tuple(
            (t / r * np.exp(2j * phase))[..., None] * np.exp(-4j * np.pi * SPACING_HZ * k * tau[..., None])
            for (t, r, tau), phase in zip(sides, theta, strict=True)
        )

    def air(self, subcarriers: ArrayLike) -> NDArray:
        """The reciprocal channel (T, M, N, K), without RF gains, clocks and oscillators."""
        k = np.asarray(subcarriers)
        total = 0.0
        for gain, delay in zip(np.moveaxis(self.path_gain, -1, 0), np.moveaxis(self.path_delay_s, -1, 0), strict=True):
            total = total + gain[..., None] * np.exp(-2j * np.pi * SPACING_HZ * k * delay[..., None])
        return total

    def phases(self, time_s: ArrayLike) -> tuple[NDArray, NDArray]:
        """theta of the ports' oscillators, (T, M) and (T, N), or (S, T, M) and (S, T, N) for times (S,)."""
        time = np.asarray(time_s, float)
        steps = time[..., None, None]
        trp, ue = (2.0 * np.pi * f * steps for f in (self.frequency_trp_hz, self.frequency_ue_hz))
        if len(self.times_s):
            index = np.clip(np.searchsorted(self.times_s, time), 0, len(self.times_s) - 1)
            if np.any(self.times_s[index] != time):
                raise ValueError(f"time_s={time_s} is not among the times for which phase noise was drawn")
            trp, ue = (x + np.moveaxis(w, -1, 0)[index]
                       for x, w in ((trp, self.noise_trp_rad), (ue, self.noise_ue_rad)))  # fmt: skip
        return trp.reshape(*time.shape, *self.tau_trp_s.shape), ue.reshape(*time.shape, *self.tau_ue_s.shape)

    def select(self, *, trp: ArrayLike | slice = slice(None), ue: ArrayLike | slice = slice(None)) -> "Drop":
        """The same networks with these TRP ports and UE ports only, each an index array or a slice."""
        changes = {name: getattr(self, name)[:, trp] for name in
                   ("transmit_trp", "receive_trp", "tau_trp_s", "frequency_trp_hz", "noise_trp_rad")}  # fmt: skip
        changes |= {name: getattr(self, name)[:, ue] for name in
                    ("transmit_ue", "receive_ue", "tau_ue_s", "frequency_ue_hz", "noise_ue_rad")}  # fmt: skip
        changes |= {name: getattr(self, name)[:, trp][:, :, ue] for name in ("path_gain", "path_delay_s", "link_snr")}
        return replace(self, trp_of_port=self.trp_of_port[trp], ue_of_port=self.ue_of_port[ue], **changes)

    def swapped(self) -> "Drop":
        """The same networks with TRPs and UEs exchanged: what was H (T, M, N, K) is now G (T, N, M, K)."""
        sides = {}
        for name in ("transmit", "receive"):
            sides |= {f"{name}_trp": getattr(self, f"{name}_ue"), f"{name}_ue": getattr(self, f"{name}_trp")}
        for name in ("tau_{}_s", "frequency_{}_hz", "noise_{}_rad", "{}_of_port"):
            trp, ue = name.format("trp"), name.format("ue")
            sides |= {trp: getattr(self, ue), ue: getattr(self, trp)}
        sides |= {name: np.swapaxes(getattr(self, name), 1, 2) for name in ("path_gain", "path_delay_s", "link_snr")}
        return replace(self, **sides)

    def at_power(self, power_dbm: float) -> "Drop":
        """The same networks with another transmit power of all ports."""
        ratio = 10.0 ** ((power_dbm - self.scene.power_dbm) / 10.0)
        return replace(self, scene=replace(self.scene, power_dbm=power_dbm), path_gain=self.path_gain * np.sqrt(ratio),
                       link_snr=self.link_snr * ratio)  # fmt: skip

    def _turn(self, subcarriers: ArrayLike, time_s: ArrayLike) -> NDArray:
        trp, ue = self.phases(time_s)
        delay = self.tau_ue_s[..., None, :] - self.tau_trp_s[..., :, None]
        clock = np.exp(-2j * np.pi * SPACING_HZ * np.asarray(subcarriers) * delay[..., None])
        return np.exp(1j * (ue[..., None, :] - trp[..., :, None]))[..., None] * clock


def draw(scene: Scene, rngs: Sequence[np.random.Generator], times_s: ArrayLike = ()) -> Drop:
    """One network per generator.

    Parameters
    ----------
    scene : what to draw from.
    rngs : one generator per trial; noise is drawn from them afterwards (`noise`).
    times_s : the times at which the channels will be asked for, any order; only with phase noise.
    """
    nodes, links = (scene.num_trp, scene.num_ue), (scene.num_trp, scene.num_ue)
    ports = (scene.num_trp * scene.trp_ports, scene.num_ue * scene.ue_ports)
    num_paths = scene.line_of_sight + scene.num_scattered
    times = np.unique(np.asarray(times_s, float)) if scene.linewidth_hz > 0 else np.empty(0)
    if scene.linewidth_hz > 0 and not len(times):
        raise ValueError("times_s must name the times at which phase noise is wanted")

    def per_trial(take):
        return np.stack([take(rng) for rng in rngs])

    of_port = tuple(np.repeat(np.arange(n), p) for n, p in zip(nodes, (scene.trp_ports, scene.ue_ports), strict=True))
    uniform = per_trial(lambda rng: rng.uniform(-1.0, 1.0, (2, sum(nodes))))
    tau, ppb = np.moveaxis(uniform * [[scene.max_delay_s], [scene.max_frequency_ppb]], 1, 0)
    frequency = ppb * (1e-9 * scene.carrier_hz)
    gains = np.exp(per_trial(lambda rng: scene.gain_std * rng.standard_normal((2, sum(ports)))
                             + 2j * np.pi * rng.random((2, sum(ports)))))  # fmt: skip
    place = per_trial(lambda rng: rng.uniform(-0.5, 0.5, (2, scene.num_ue)))
    shadowing = per_trial(lambda rng: scene.shadowing_db * rng.standard_normal(links))
    shape = (*ports, num_paths)
    fading = noise(rngs, shape)
    crossing = per_trial(lambda rng: np.exp(2j * np.pi * rng.random(ports)))
    share = per_trial(lambda rng: rng.random((*links, num_paths)))
    steps = np.sqrt(2.0 * np.pi * scene.linewidth_hz * np.diff(times, prepend=times[:1]))
    wander = np.cumsum(per_trial(lambda rng: rng.standard_normal((sum(nodes), len(times)))) * steps, axis=-1)

    distance = _distances(scene, place)
    loss_db = scene.path_loss_db(np.full(distance.shape, scene.distance_m) if scene.equal_path_loss else distance)
    snr = 10.0 ** ((scene.snr_db_at_0_db_gain - loss_db - scene.extra_loss_db + shadowing) / 10.0)
    delay = distance[..., None] / LIGHT_M_S + _excess_delays(scene, share)
    expand = np.ix_(np.arange(len(rngs)), *of_port)
    gain, snr = _path_gains(scene, fading, crossing, distance[expand], snr[expand], of_port)
    split, t, r = ports[0], gains[:, 0], gains[:, 1]
    tau_p, frequency_p, wander_p = (
        (x[:, : nodes[0]][:, of_port[0]], x[:, nodes[0] :][:, of_port[1]]) for x in (tau, frequency, wander)
    )
    return Drop(
        scene, t[:, :split], r[:, :split], t[:, split:], r[:, split:], *tau_p, *frequency_p, *wander_p, times,
        gain, delay[expand], snr, *of_port,
    )  # fmt: skip


def noise(rngs: Sequence[np.random.Generator], shape: tuple[int, ...]) -> NDArray:
    """CN(0, 1) of the given shape from each trial's generator, (T, ...)."""
    values = np.stack([rng.standard_normal((*shape, 2)) for rng in rngs])
    return np.sqrt(0.5) * (values[..., 0] + 1j * values[..., 1])


def _distances(scene: Scene, place: NDArray) -> NDArray:
    """Metres (T, TRPs, UEs) from where the UEs stand in their square, place (T, 2, UEs) in -0.5 ... 0.5."""
    y_trp = scene.facade_m * (np.linspace(-0.5, 0.5, scene.num_trp) if scene.num_trp > 1 else np.zeros(1))
    x_ue, y_ue = scene.distance_m + scene.area_m * place[:, 0], scene.area_m * place[:, 1]
    return np.hypot(x_ue[:, None, :], y_ue[:, None, :] - y_trp[:, None])


def _excess_delays(scene: Scene, share: NDArray) -> NDArray:
    """Delays in s after the direct path, truncated exponential, from uniform share (..., Q); 0 for the direct path."""
    if not scene.num_scattered:
        return np.zeros(share.shape)
    reach = -np.expm1(-_LONGEST_EXCESS_S / scene.delay_spread_s)
    excess = -scene.delay_spread_s * np.log1p(-reach * share)
    if scene.line_of_sight:
        excess[..., 0] = 0.0
    return excess


def _path_gains(
    scene: Scene, fading: NDArray, crossing: NDArray, distance: NDArray, snr: NDArray, of_port: tuple[NDArray, NDArray]
) -> tuple[NDArray, NDArray]:
    """Gains (T, M, N, Q) in units of the noise, and the mean SNR (T, M, N), both with the cross-polar loss."""
    trp, ue = (np.arange(len(nodes)) % ports for nodes, ports in
               zip(of_port, (scene.trp_ports, scene.ue_ports), strict=True))  # fmt: skip
    crossed = trp[:, None] != ue
    snr = snr * np.where(crossed, 10.0 ** (-scene.cross_polar_db / 10.0), 1.0)
    gain = fading
    if scene.line_of_sight:
        rice = 10.0 ** (scene.rice_factor_db / 10.0) if scene.num_scattered else np.inf
        scattered, direct = 1.0 / (1.0 + rice), 1.0 / (1.0 + 1.0 / rice)
        gain = gain * np.sqrt(scattered / max(scene.num_scattered, 1))
        phase = np.exp(-2j * np.pi * np.mod(distance * (scene.carrier_hz / LIGHT_M_S), 1.0))
        gain[..., 0] = np.sqrt(direct) * phase * np.where(crossed, crossing, 1.0)
    else:
        gain = gain / np.sqrt(scene.num_scattered)
    return gain * np.sqrt(snr)[..., None], snr

# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures what a bidirectional calibration is worth, and says pattern by pattern what there is to plot."""

from collections.abc import Mapping, Sequence

import numpy as np
import pmt

from ..assembly import Assembly
from ..protocols.bidirectional_plan import EXCHANGE, TRACKING
from ..protocols.slots import CollectorGroup, Product
from . import messages
from .collector import collector
from .guard import guarded

PLOTS = pmt.intern("plots")
SNRS = ("snr_db", "ideal_snr_db", "uncalibrated_snr_db")


def prediction_error(earlier: Mapping[str, object], later: Mapping[str, object], samp_rate: float) -> np.ndarray:
    """Phase (ports,) in rad by which coefficients differ from what an earlier calibration predicted for their time.

    ``arg(c(t_1) conj(c(t_0))) - 4 pi f (t_1 - t_0)``, in (-pi, pi]: c of a port whose oscillator is f above the
    reference's turns by twice as much.

    Parameters
    ----------
    earlier, later : mapping
        Values of calibration products: `c` (ports,), `frequency_hz` (ports,), `reference_time` (samples).
    samp_rate : float
    """
    seconds = (int(later["reference_time"]) - int(earlier["reference_time"])) / samp_rate
    turn = np.exp(4j * np.pi * np.asarray(earlier["frequency_hz"]) * seconds)
    return np.angle(np.asarray(later["c"]) * np.conj(np.asarray(earlier["c"]) * turn))


def phase_errors(c_hat: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Phase (ports,) in rad of c_hat against c, without the phase that is common to all ports."""
    phasor = np.exp(1j * (np.angle(c_hat) - np.angle(c)))
    return np.angle(phasor * np.conj(phasor.sum()))


def snr_by_ports(cooperation: Sequence[Mapping[str, object]]) -> np.ndarray:
    """SNR in dB, (3, numbers of ports): as calibrated, ideal, without calibration; nan where it is not known."""
    return np.array([[row[key] for row in cooperation] for key in SNRS], float)


class bidirectional_monitor(collector):
    """Measures the joint transmissions of a bidirectional run, and publishes beside their products what to plot.

    It takes the place of all collectors but the `bidirectional_calibrator`: those of the joint downlink, of the joint
    uplink and of the downlink to several users, as far as the testbed file asks for them.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `bidirectional` section.
    truth : bool
        Whether to compare phases with those of the simulated network that the testbed file describes. Without sense
        on radios.
    """

    def __init__(self, assembly: Assembly, truth: bool = True):
        if assembly.bidirectional is None:
            raise ValueError(f"assembly: testbed {assembly.testbed.name!r} has no section bidirectional")
        group = CollectorGroup({name: member for name, member in assembly.collectors().items()
                                if name != "bidirectional"})
        collector.__init__(self, group, assembly.schedule.nodes, "bidirectional_monitor")
        self.message_port_register_out(PLOTS)
        self._samp_rate, self._trps = assembly.testbed.samp_rate, assembly.bidirectional.plan.trps
        self._downlink = assembly.plan.downlink if assembly.verifies else None
        self._network = assembly.network() if truth and not assembly.uses_radios else None
        self._last: Mapping[str, object] | None = None

    @property
    def downlink(self) -> list[dict[str, object]]:
        """Gains of the TRPs' joint transmissions in every pattern: see `protocols.verification.Verifier`."""
        return self._history("verifier")

    @property
    def uplink(self) -> list[dict[str, object]]:
        """The same of the UEs' joint transmissions to the first TRP."""
        return self._history("uplink_verifier")

    @property
    def users(self) -> list[dict[str, object]]:
        """Downlink to several users in every pattern: see `protocols.multiuser.MultiuserCollector`."""
        return self._history("multiuser")

    def _history(self, name: str) -> list[dict[str, object]]:
        member = self.member.members.get(name)
        return [] if member is None else member.history

    @guarded
    def handle_phases(self, message):
        """As any collector; a new calibration is compared with the last one, and with the truth."""
        kind = messages.kind(message)
        if kind == "begin":
            self._last = None
        elif kind == "product" and messages.get(message, "phase") in (EXCHANGE, TRACKING):
            self._compare(messages.product(message))
        super().handle_phases(message)

    def _compare(self, product: Product) -> None:
        """Publish how the TRPs' phases have moved; patterns that measured nothing repeat the last coefficients."""
        new, last = product.values, self._last
        if "c" not in new or (last is not None and new["reference_time"] == last["reference_time"]):
            return
        plots = {"time_s": new["reference_time"] / self._samp_rate, "delay_s": new["delay_s"],
                 "prediction_error_rad": prediction_error(new if last is None else last, new, self._samp_rate)}
        if self._network is not None:
            truth = self._network.true_calibration(int(new["reference_time"]))
            plots["phase_error_rad"] = phase_errors(new["c"], self._network.of_nodes(truth, self._trps))
        self._last = new
        self._publish(product.phase, plots)

    def finish(self, product: Product) -> None:
        """Publish the SNR of cooperating ports."""
        if product.phase == self._downlink and self.downlink[-1].get("cooperation"):
            self._publish(product.phase, {"snr_db": snr_by_ports(self.downlink[-1]["cooperation"])})

    def ended(self) -> None:
        """Let what plots finish too."""
        self.message_port_pub(PLOTS, messages.encode("end", error=""))

    def _publish(self, phase: str, values: Mapping[str, object]) -> None:
        self.message_port_pub(PLOTS, messages.product_to_pmt(Product(phase, values)))

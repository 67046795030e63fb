# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bursts radios have yet to confirm, and which of them a report of a radio is about."""

from collections.abc import Iterable, Mapping, Sequence

from .slots import Grant, Slot

OK = "ok"
END_SLACK = 4  # radios may stamp the end of a burst late, by the delay of their filters: up to a quarter of a slot


class Confirmations:
    """Bursts awaited by port; a port is named as in "node a sending on port 0", without the "node".

    Parameters
    ----------
    num_ports : mapping of node to int
        Ports of the nodes whose bursts a radio confirms.
    slot_samples : int
    """

    def __init__(self, num_ports: Mapping[str, int], slot_samples: int):
        self._num_ports, self._length = dict(num_ports), slot_samples
        # Attempts that are not confirmed, and when they were released.
        self._awaited: dict[str, dict[Grant, int]] = {
            _name(node, port): {} for node, count in self._num_ports.items() for port in range(count)}
        self._unsent: dict[str, Grant] = {}  # last attempt whose burst was not sent

    @property
    def awaited(self) -> dict[str, frozenset[Grant]]:
        """Attempts that are not confirmed, by port; no entry where there are none."""
        return {port: frozenset(grants) for port, grants in self._awaited.items() if grants}

    def expect(self, grants: Iterable[Grant], slots: Sequence[Slot], now: int) -> None:
        """Bursts of these attempts are to come; `now` is the radios' time at which they are released."""
        for grant in grants if self._num_ports else ():
            for node in slots[grant.slot].transmitters:
                for port in range(self._num_ports.get(node, 0)):
                    self._awaited[_name(node, port)][grant] = now

    def take(self, node: str, port: int, sample: int | None, status: str) -> tuple[str, Grant] | None:
        """Port and attempt that a report is about, which is awaited no more; None if it was over.

        An "ok" has the first sample after the burst; anything else, if it is known, the time at which it was found. A
        radio works bursts off in order, so that the first one is meant that can be.
        """
        name = _name(node, port)
        awaited = self._awaited.get(name, {})
        meant = self._ended(awaited, sample) if status == OK else self._failed(name, awaited, sample)
        grant = min(meant, key=lambda one: one.start, default=None)
        if grant is None:
            return None
        del awaited[grant]
        if status != OK:
            self._unsent[name] = grant
        return name, grant

    def _ended(self, awaited: Iterable[Grant], sample: int | None) -> list[Grant]:
        latest = self._length + self._length // END_SLACK
        return [grant for grant in awaited if sample is not None and 0 < sample - grant.start <= latest]

    def _failed(self, name: str, awaited: Mapping[Grant, int], sample: int | None) -> list[Grant]:
        if sample is None:
            return list(awaited)
        last = self._unsent.get(name)
        if last is not None and last.start <= sample < last.start + self._length:
            return []  # the rest of a burst that is known not to have been sent
        known = [grant for grant, released in awaited.items() if released <= sample]
        return [grant for grant in known if grant.start <= sample] or known

    def overdue(self, before: int) -> list[tuple[str, Grant]]:
        """Ports and attempts that began before this sample and are still not confirmed; they are awaited no more."""
        found = [(name, grant) for name, own in self._awaited.items() for grant in own if grant.start < before]
        for name, grant in found:
            del self._awaited[name][grant]
            self._unsent[name] = grant
        return found

    def forget(self, slot: int) -> None:
        """Attempts at this slot are over."""
        for grants in self._awaited.values():
            for grant in [grant for grant in grants if grant.slot == slot]:
                del grants[grant]

    def clear(self) -> None:
        """All attempts are over."""
        for grants in self._awaited.values():
            grants.clear()


def _name(node: str, port: int) -> str:
    return f"{node} sending on port {port}"

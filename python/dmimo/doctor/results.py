# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check is, in which order they come, what each needs, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Check(NamedTuple):
    """One check: its key, its name in words, the checks that must have passed for it to mean anything."""

    key: str
    title: str
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("found", "found"),
    Check("settings", "opens, takes its settings", ("found",)),
    Check("reference", "reference locked", ("settings",)),
    Check("pps", "PPS edges agree", ("settings",)),
    Check("time", "time set after streamers", ("pps",)),
    Check("synthesizers", "synthesizers lock", ("time",)),
    Check("streams", "streams begin together", ("time", "synthesizers")),
    Check("timed_burst", "timed bursts", ("streams",)),
    Check("timed_tune", "timed tune", ("streams",)),
    Check("phase", "phase after retunes", ("streams",)),
    Check("lead", "lead time", ("streams",)),
    Check("stream", "steady streams", ("streams",)),
)
TITLES = {check.key: check.title for check in CHECKS}
Status = Literal["passed", "noted", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes
    ----------
    check : str
        Key of the check.
    status : passed, noted, failed or skipped
        Noted is what the device cannot help: no fault, but to be known.
    measured : str
        What was found, in words with units; why it was skipped.
    fix : str
        What to do, where it failed; what follows from it, where it was noted.
    values : mapping
        The numbers behind the words.
    """

    check: str
    status: Status
    measured: str
    fix: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


class Skip(Exception):
    """A check cannot say anything; its text is the reason."""


@dataclass
class Examination:
    """All results of one radio, in the order of the checks."""

    name: str
    device_args: str
    boards: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was checked."""
        return bool(self.results) and not any(result.status == "failed" for result in self.results)

    def reason_to_skip(self, check: Check) -> str:
        """Why a check would mean nothing after those before it; empty where it would not."""
        missing = self._missing(check)
        return f"needs: {', '.join(dict.fromkeys(missing))}" if missing else ""

    def _missing(self, check: Check) -> list[str]:
        """Titles of the checks without which this one means nothing: those where the trouble begins."""
        status = {result.check: result.status for result in self.results}
        found = []
        for need in (one for one in CHECKS if one.key in check.needs and status.get(one.key) != "passed"):
            found += self._missing(need) or [need.title]
        return found

    def remaining(self) -> list[Check]:
        """Checks without a result."""
        done = {result.check for result in self.results}
        return [check for check in CHECKS if check.key not in done]

    def skip_remaining(self, reason: str) -> None:
        """Enter the checks without a result as skipped."""
        self.results += [Result(check.key, "skipped", reason) for check in self.remaining()]

    def as_dict(self) -> dict[str, Any]:
        """Content for doctor.json."""
        checks = [{"check": result.check, "title": TITLES[result.check], "status": result.status,
                   "measured": result.measured, "fix": result.fix, "values": dict(result.values)}
                  for result in self.results]
        return {"name": self.name, "device_args": self.device_args, "boards": self.boards, "passed": self.passed,
                "checks": checks}


def report(examinations: Sequence[Examination], **about: Any) -> dict[str, Any]:
    """Content of doctor.json: the radios' checks, whether all passed, and what else is said about the run."""
    return {**about, "passed": bool(examinations) and all(one.passed for one in examinations),
            "radios": [one.as_dict() for one in examinations]}

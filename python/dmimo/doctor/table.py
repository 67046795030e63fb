# SPDX-License-Identifier: GPL-3.0-or-later
"""An examination as a table for the terminal."""

from itertools import zip_longest

from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .results import CHECKS, TITLES, Check, Examination, Result

MARKS = {"passed": ("passed", "green"), "noted": ("noted", "yellow"), "failed": ("FAILED", "bold red"),
         "skipped": ("skipped", "dim")}
LABELS = {"failed": "fix: ", "noted": "so: "}


def examination_table(examination: Examination, running: Check | None = None) -> Table:
    """One row for each check with what was found, and what to do where it failed; the running one turns."""
    title = Text.assemble(f"Radio {examination.name}", (f"  {examination.device_args}", "not bold dim"))
    table = Table(title=title, title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("finding, and what to do", ratio=1)
    for result, following in zip_longest(examination.results, examination.results[1:]):
        word, style = MARKS[result.status]
        alone = any(one is not None and one.status in LABELS for one in (result, following))
        table.add_row(TITLES[result.check], Text(word, style), _finding(result), end_section=alone)
    if running is not None:
        table.add_row(running.title, Spinner("dots"), "")
        for check in CHECKS[len(examination.results) + 1:]:
            table.add_row(Text(check.title, "dim"), "", "")
    return table


def _finding(result: Result) -> RenderableType:
    if result.status in LABELS:
        return Group(Text(result.measured), Text.assemble((LABELS[result.status], "bold yellow"), result.fix))
    return Text(result.measured, "dim" if result.status == "skipped" else "")

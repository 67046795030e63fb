# SPDX-License-Identifier: GPL-3.0-or-later
"""An examination as a table for the terminal."""

from itertools import zip_longest

from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from .results import CHECKS, TITLES, Check, Examination, Result

MARKS = {"passed": ("passed", "green"), "failed": ("FAILED", "bold red"), "skipped": ("skipped", "dim")}


def examination_table(examination: Examination, running: Check | None = None) -> Table:
    """One row for each check with what was found, and what to do where it failed; the running one turns."""
    title = Text.assemble(f"Radio {examination.name}", (f"  {examination.device_args}", "not bold dim"))
    table = Table(title=title, title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("finding, and what to do", ratio=1)
    for result, following in zip_longest(examination.results, examination.results[1:]):
        word, style = MARKS[result.status]
        alone = "failed" in (result.status, following.status if following else "")
        table.add_row(TITLES[result.check], Text(word, style), _finding(result), end_section=alone)
    if running is not None:
        table.add_row(running.title, Spinner("dots"), "")
        for check in CHECKS[len(examination.results) + 1:]:
            table.add_row(Text(check.title, "dim"), "", "")
    return table


def _finding(result: Result) -> RenderableType:
    if result.status == "failed":
        return Group(Text(result.measured), Text.assemble(("fix: ", "bold yellow"), result.fix))
    return Text(result.measured, "dim" if result.status == "skipped" else "")

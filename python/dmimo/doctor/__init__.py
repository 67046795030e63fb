# SPDX-License-Identifier: GPL-3.0-or-later
"""What `dmimo doctor` finds out about a radio, check by check.

`results` says what a check is and what it needs, `repeatability`, `arrivals` and `leads` hold the arithmetic, `fixes`
the advice; all of these need no GNU Radio. `bench` is the flowgraph, `checks` asks the radio, and `examination` runs
the checks in a process of their own, so that a radio which crashes or hangs ends a check and not the doctor.
"""

# SPDX-License-Identifier: GPL-3.0-or-later
"""Schedules and roles, one module per protocol. No GNU Radio, no input or output, no clock."""

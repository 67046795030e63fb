# SPDX-License-Identifier: GPL-3.0-or-later
"""Estimators, bounds and waveforms: pure, batched NumPy functions."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""The physical model of a network: hardware, oscillators, propagation. It never imports an estimator."""

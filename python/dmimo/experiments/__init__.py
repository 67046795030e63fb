# SPDX-License-Identifier: GPL-3.0-or-later
"""Monte-Carlo campaigns: seed in, arrays out; one registered function per figure."""

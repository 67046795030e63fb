# SPDX-License-Identifier: GPL-3.0-or-later
"""A radio on another host, as the scheduler sees it."""

from collections.abc import Callable

from ..radio_settings import RadioSettings
from .host_bridge import host_bridge


class host_radio(host_bridge):
    """Takes the place of a `usrp_array`, without streams and events, which do not leave its host.

    Parameters
    ----------
    name : str
    settings : RadioSettings
    send : callable(to, message)
        See `host_bridge`.
    """

    def __init__(self, name: str, settings: RadioSettings, send: Callable[[str, object], None]):
        host_bridge.__init__(self, name, send, ("control",), ("status",))
        self.settings = settings

# SPDX-License-Identifier: GPL-3.0-or-later
"""A scheduler block with radios that are nothing but messages, for tests."""

from types import SimpleNamespace

import pmt
from gnuradio import dmimo
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Product, Slot, build_schedule

RATE = 1000.0
SLOT = 10
SCHEDULE = build_schedule(("n1", "n2"), SLOT, [
    ("open", 2, [Slot(0, "sound", ("n1",), (0, 0))] * 2), ("lock step", 1, [Slot(0, "sound", ("n2",), (0, 0))] * 2)])
CONFIRMED = {"n1": 1, "n2": 1}


class Bench:
    """A scheduler whose messages are recorded; the local clock is set by hand, device time is `ahead` of it."""

    def __init__(self, monkeypatch, radios=("r1", "r2"), schedule=SCHEDULE, **options):
        self.local_s, self.ahead_s = 100.0, 3.0
        module = "gnuradio.dmimo.blocks.slot_scheduler"
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: self.local_s))
        self.block = dmimo.slot_scheduler(schedule, radios=radios, samp_rate=RATE, confirmed=CONFIRMED, **options)
        self.published = []
        self.block.message_port_pub = lambda port, message: self.published.append(
            (pmt.symbol_to_string(port), message))
        self.block.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.block.stop()

    def status(self, kind, **fields):
        self.block.handle_status(messages.encode(kind, **fields))

    def time(self, radio, ahead_s, count=1, delay_s=0.0, asked_s=0.0):
        """Reports that are so late, of a time so long after it was asked for."""
        self.ahead_s = ahead_s
        for _ in range(count):
            read_s = self.local_s - delay_s
            self.status("radio_time", radio=radio, sample=round((read_s + ahead_s) * RATE), asked=read_s - asked_s)
            self.local_s += 0.05

    def begin(self, first=(105_000, 104_000), epochs=(7, 9), ahead_s=3.0):
        """All radios agree and stream."""
        for radio in ("r1", "r2"):
            self.time(radio, ahead_s, 8)
        for radio, sample, epoch in zip(("r1", "r2"), first, epochs, strict=True):
            self.status("radio_begin", radio=radio, sample=sample, epoch=epoch)

    def ready(self):
        """All nodes hold the schedule; and it is time for the first slot."""
        for node in SCHEDULE.nodes:
            self.status("ready", node=node, hash=self.told("begin")[-1]["hash"], **self.identity)
        self.wait_until(self.block.first_sample - 250)

    def wait_until(self, sample):
        """Let the local clock go on until the device time is this one."""
        self.local_s = max(self.local_s, sample / RATE - self.ahead_s)
        self.time("r1", self.ahead_s)

    @property
    def identity(self):
        begin = self.told("begin")[-1]
        return {key: begin[key] for key in ("run", "epoch")}

    def told(self, kind, port="control"):
        return [messages.values(message) for name, message in self.published
                if name == port and messages.kind(message) == kind]

    def phases_done(self):
        return [messages.get(message, "phase") for name, message in self.published
                if name == "phases" and messages.kind(message) == "phase"]

    def granted(self):
        """Grants of the last message."""
        return messages.grants([message for name, message in self.published if messages.kind(message) == "grant"][-1])

    def received(self, grants, **other):
        for node in SCHEDULE.nodes:
            header = messages.encode("ack", node=node, **{**self.identity, **other})
            self.block.handle_status(messages.ack_to_pmt(header, grants, "ok"))

    def sent(self, node, sample, event="burst_ack", status="ok", **other):
        self.status("sent", node=node, port=0, sample=sample, event=event, status=status, **{**self.identity, **other})

    def walk(self):
        """A run without a hitch."""
        self.ready()
        for phase in ("open", "lock step"):
            for _ in range(1 if phase == "open" else 2):
                grants = self.granted()
                self.received(grants)
                for grant in grants:
                    self.sent("n1" if phase == "open" else "n2", grant.start + SLOT)
            self.end_phase(phase)

    def watch(self, answering=SCHEDULE.nodes):
        """As long passes as the watchdog waits; these nodes answer a query."""
        queries = len(self.told("query"))
        for _ in range(400):
            for radio in ("r1", "r2"):
                self.status("radio_time", radio=radio, sample=round((self.local_s + self.ahead_s) * RATE),
                            asked=self.local_s)
            self.local_s += 0.05
        self.block.handle_watchdog(pmt.PMT_T)
        if len(self.told("query")) > queries:
            for node in answering:
                self.status("alive", node=node, **self.identity)

    def end_phase(self, phase):
        self.block.handle_product(messages.product_to_pmt(Product(phase, {}), **self.identity))
        for node in SCHEDULE.nodes:
            self.status("taken", node=node, phase=phase, **self.identity)

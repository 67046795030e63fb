// SPDX-License-Identifier: GPL-3.0-or-later
// What the device arguments of a virtual USRP mean. UHD takes keys that end in a digit as belonging to one of several
// devices (addr0, addr1) and separates arguments by commas: no key here ends in a digit, and lists use colons.
#pragma once

#include <complex>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <uhd/types/device_addr.hpp>
#include <utility>
#include <vector>

namespace virtual_usrp {

// A fault that happens to the n-th burst, "N" on every board or "N@BOARD"; bursts are counted per channel from 0.
class BurstFaults
{
public:
    BurstFaults() = default;
    BurstFaults(const std::string& key, const std::string& text);
    bool hits(uint64_t burst, size_t board) const;

private:
    std::set<std::pair<uint64_t, int>> _bursts; // board -1: every one
};

// A fault of a board that lasts for a while: SECONDS:BOARD[:DURATION], counted from the first stream command.
struct Outage
{
    double begin;    // seconds
    double duration; // seconds; infinite where none is given
};

enum class AfterOverflow { RESTART, CONTINUE, STOP };

struct Settings
{
    explicit Settings(const uhd::device_addr_t& args);

    // -- what there is
    size_t num_mboards;       // num_mboards=1
    size_t num_channels;      // num_channels=2, per board
    bool dual;                // layout=single: subdevices A:A A:B ...; layout=dual: A:0 B:0 ..., one per slot
    bool lo_per_channel;      // lo_per_channel=0: one synthesizer per board and direction; 1: one per channel
    bool shared_events;       // shared_events=1: B210, on which all transmit streams read one queue of events
    std::string serial;       // serial=V: board b is V<b>
    double master_clock_rate; // master_clock_rate=HZ; 0: a multiple of the first sample rate, at most 200 MHz
    size_t first_board;       // first_board=0: number of board 0 within the medium, where several devices share it
    std::string medium;       // medium=NAME: devices of one process with this name hear each other
    std::string log;          // log=FILE: one JSON line a command, appended

    // -- the medium; the device that makes it decides
    uint64_t seed;            // seed=0
    double speed;             // speed=1: network seconds per host second
    std::string coupling;     // coupling=random | ones | none | FILE with lines "rx_port tx_port re im"
    double coupling_db;       // coupling_db=-20: power of a path; the factor of a FILE's numbers is 1
    bool random_chains;       // gains=random: t and r with seeded amplitude and phase; gains=unit
    double noise_db;          // noise_db=-80: noise power over full scale
    int64_t delay;            // delay=0: samples from any transmitter to any receiver

    // -- the boards
    std::vector<int64_t> loop_delay; // loop_delay=0: samples added by a port's transmit chain, one for all or a list
    // compression=0:0: RE:IM of the amplifier x + (RE + 1j IM) x |x|^2 at the nominal gain, x relative to full scale;
    // one pair for all ports or a pair for each
    std::vector<std::complex<double>> compression;
    int lo_phase_quantum;            // lo_phase_quantum=none | 90 | 180 | 0 (the same phase after every tune)
    double lo_step;                  // lo_step=0: Hz; the synthesizer takes multiples only, the DSP must do the rest
    double lo_settle;                // lo_settle=0.001: seconds from a tune until lo_locked
    double nominal_gain;             // nominal_gain=0: dB at which a chain has the gain t or r; also the initial gain
    double ppm;                      // ppm=0: carrier errors of boards on their own clock, uniform in +-ppm
    double rx_buffer;                // rx_buffer=0.5: seconds that may wait unread before an overflow
    size_t tx_buffer;                // tx_buffer=250000: samples per channel that may wait to be sent
    double tx_latency;               // tx_latency=0: seconds from send() to the time check
    size_t spp;                      // spp=2000: samples per packet

    // -- faults
    BurstFaults late;                   // late=5:7@1: refused as late, whatever their lead
    BurstFaults underflow;              // underflow=5: second half lost
    BurstFaults lost_ack;               // lost_ack=5: sent, but no BURST_ACK
    std::vector<double> overflow;       // overflow=0.5:2: seconds after the start of each stream
    // after_overflow=restart: as with RFNoC, streams begin anew 50 ms later at any tick, off the sample grid;
    // after_overflow=continue: overflow_gap later on the grid; after_overflow=stop: only with the next command
    AfterOverflow after_overflow;
    double overflow_gap;                // overflow_gap=0.01: seconds that an overflow made up loses, with `continue`
    double overflow_shift;              // overflow_shift=0: samples by which times are wrong after an overflow made up
    std::set<size_t> unlocked;          // unlocked=BOARD: ref_locked is false
    std::set<size_t> lo_unlocked;       // lo_unlocked=BOARD: lo_locked stays false
    std::map<size_t, Outage> ref_lost;  // ref_lost=SECONDS:BOARD[:DURATION]: ref_locked is false for that time
    std::map<size_t, Outage> lo_lost;   // lo_lost=SECONDS:BOARD[:DURATION]: lo_locked is false for that time
    std::map<size_t, int64_t> pps_skew; // pps_skew=BOARD:EDGES: takes a new time that many PPS edges late
    std::map<size_t, double> pps_late;  // pps_late=BOARD:SECONDS: sees every edge that much later than the others [s]
    std::set<size_t> pps_missing;       // pps_missing=BOARD: never sees an edge
    std::map<size_t, Outage> stalled;   // stalled=SECONDS:BOARD[:DURATION]: its receive streams give nothing
    std::map<size_t, std::pair<double, double>> clock_jump; // clock_jump=SECONDS:BOARD:JUMP: by so many seconds, once
    std::map<size_t, double> vanish;    // vanish_after=SECONDS:BOARD after the first stream command

    size_t num_ports() const { return num_mboards * num_channels; }
};

} // namespace virtual_usrp

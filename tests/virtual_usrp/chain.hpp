// SPDX-License-Identifier: GPL-3.0-or-later
// One RF chain, transmit or receive: its settings over time and, if it transmits, the samples on their way.
//
// Network time is what an outside observer's clock shows; it is counted in ticks of a board's master clock, from the
// making of the medium on. Device time is network time plus the board's offset (board.hpp).
#pragma once

#include <algorithm>
#include <complex>
#include <cstdint>
#include <deque>
#include <limits>
#include <vector>

namespace virtual_usrp {

constexpr int64_t NEVER = std::numeric_limits<int64_t>::max();

inline int64_t floor_div(int64_t numerator, int64_t denominator)
{
    const int64_t quotient = numerator / denominator;
    return quotient - (numerator % denominator < 0 ? 1 : 0);
}

struct ChainState
{
    double rf_freq = 1e9;  // Hz
    double dsp_freq = 0;   // Hz, as UHD counts it: the carrier is rf - dsp on receive, rf + dsp on transmit
    double gain_db = 0;    // over the nominal gain
    double lo_phase = 0;   // radians
    double freq_error = 0; // of the board's reference, relative
};

// The settings of a chain as a step function of network time.
class Timeline
{
public:
    explicit Timeline(const ChainState& first) : _steps{{std::numeric_limits<int64_t>::min(), first}} {}

    const ChainState& last() const { return _steps.back().second; }

    // Commands are executed in the order in which they arrive: none takes effect before an earlier one.
    void set(int64_t tick, const ChainState& state) { _steps.emplace_back(std::max(tick, _steps.back().first), state); }

    // The state at `tick`; `change` is the tick of the next one.
    const ChainState& at(int64_t tick, int64_t& change) const
    {
        size_t index = _steps.size() - 1;
        while (_steps[index].first > tick)
            --index;
        change = index + 1 < _steps.size() ? _steps[index + 1].first : NEVER;
        return _steps[index].second;
    }

    // After a change of the tick rate the past is of no interest.
    void restart() { _steps.assign(1, {std::numeric_limits<int64_t>::min(), ChainState(last())}); }

private:
    std::vector<std::pair<int64_t, ChainState>> _steps;
};

// Consecutive samples of a transmit chain, `step` ticks apart, of one burst.
struct Segment
{
    int64_t burst; // tick of the burst's first sample, at which the digital oscillator began
    int64_t start;
    int64_t step;
    std::vector<std::complex<float>> samples;

    int64_t end() const { return start + step * static_cast<int64_t>(samples.size()); }
};

struct Chain
{
    size_t port = 0;               // number within the medium
    bool transmits = false;
    std::complex<double> gain = 1; // t or r
    int64_t loop_delay = 0;        // samples
    // Of a transmitter: its amplifier makes x + compression x |x|^2 of x, in units of full scale at the nominal gain.
    std::complex<double> compression = 0;
    double tick_rate = 0;          // Hz, of its board
    int64_t stream = 0;            // of a receiver: tick at which its stream, and its digital oscillator, began
    Timeline states{ChainState{}};
    std::deque<Segment> segments;

    // What the digital oscillator adds to the synthesizer's frequency.
    double digital(const ChainState& state) const
    {
        return (transmits ? state.dsp_freq : -state.dsp_freq) * (1 + state.freq_error);
    }

    double carrier(const ChainState& state) const { return state.rf_freq * (1 + state.freq_error) + digital(state); }

    void append(int64_t burst, int64_t start, int64_t step, const std::vector<std::complex<float>>& samples)
    {
        // Packets of a burst join into one segment, up to a length that keeps copies short.
        constexpr size_t LONGEST = 1 << 16;
        if (!segments.empty() && segments.back().burst == burst && segments.back().end() == start &&
            segments.back().step == step && segments.back().samples.size() < LONGEST) {
            auto& joined = segments.back().samples;
            joined.insert(joined.end(), samples.begin(), samples.end());
        } else {
            segments.push_back({burst, start, step, samples});
        }
    }
};

} // namespace virtual_usrp

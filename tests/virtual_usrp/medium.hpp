// SPDX-License-Identifier: GPL-3.0-or-later
// What lies between the boards: network time, and every receive chain hearing every transmit chain,
//
//   y_i[n] = sum_j  r_i exp(-1j theta_i) h_ij exp(+1j theta_j) t_j  exp(2j pi (f_j - f_i) n T)  F_j(x_j[n - d_j])
//            +  noise,
//
// with reciprocal h (h_ij = h_ji), LO phases theta of board and direction, d_j samples of delay and all clipped to the
// full scale of 1 per component. The amplifier F(x) = x + k x |x|^2 is behind the gain setting: with g times the
// nominal gain g x + k g^3 x |x|^2 comes out, F at the nominal gain with k g^2 for k. What the digital oscillators add
// to a carrier does not count n from the beginning of time: a transmitter's starts anew with each burst, a receiver's
// with its stream, as on hardware. No thread runs here: what a receiver hears is computed when it is asked for.
#pragma once

#include "chain.hpp"
#include "settings.hpp"

#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

namespace virtual_usrp {

using Lock = std::unique_lock<std::mutex>;
using Clock = std::chrono::steady_clock;

class Medium
{
public:
    using HostTime = Clock::time_point;

    // The medium of that name in this process; a new one for every device without a name.
    static std::shared_ptr<Medium> get(const Settings& settings);
    explicit Medium(const Settings& settings);

    // Guards everything that belongs to the medium, boards and streams included.
    std::mutex mutex;
    // Told of commands, so that a waiting recv() looks again.
    std::condition_variable changed;

    int64_t now_ns() const;
    int64_t now_ticks(double tick_rate) const { return ticks(now_ns(), tick_rate); }
    static int64_t ticks(int64_t ns, double tick_rate);
    static int64_t ns(int64_t ticks, double tick_rate);
    HostTime host_time(int64_t ns) const;

    void join(const std::shared_ptr<Chain>& transmitter) { _transmitters.push_back(transmitter); }
    std::complex<double> coupling(size_t rx_port, size_t tx_port) const;

    // `count` samples of a receive chain, `step` ticks apart, from the tick `start` on.
    void receive(const Chain& receiver, int64_t start, int64_t step, size_t count, std::complex<float>* out) const;

    // A reader still needs what is heard from `ns` on; it needs nothing more after forget().
    void reads_from(const void* reader, int64_t ns) { _readers[reader] = ns; }
    void forget(const void* reader) { _readers.erase(reader); }
    void prune(Chain& transmitter) const;

    // Network time of the first stream command, in ns: faults count from here.
    std::optional<int64_t> first_stream;

    const Settings settings;

private:
    void add_noise(const Chain& receiver, int64_t start, int64_t step, size_t count, std::complex<float>* out) const;
    void add_transmitter(const Chain& receiver, const Chain& transmitter, int64_t start, int64_t step, size_t count,
        std::complex<float>* out) const;
    void add_segment(const Chain& receiver, const Chain& transmitter, const Segment& segment, int64_t start,
        int64_t step, size_t count, std::complex<float>* out) const;

    const HostTime _begin;
    std::vector<std::weak_ptr<Chain>> _transmitters;
    std::map<const void*, int64_t> _readers;
    std::map<std::pair<size_t, size_t>, std::complex<double>> _listed; // coupling=FILE
    std::vector<std::complex<float>> _noise;
};

} // namespace virtual_usrp

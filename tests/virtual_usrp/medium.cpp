// SPDX-License-Identifier: GPL-3.0-or-later
#include "medium.hpp"

#include "random.hpp"

#include <cmath>
#include <fstream>
#include <sstream>
#include <uhd/exception.hpp>

namespace virtual_usrp {

namespace {

// Noise comes from a table that is read from another place for each block of absolute time: drawing twenty million
// Gaussian samples a second would cost more than everything else here.
constexpr size_t NOISE_BLOCK = 4096;
constexpr size_t NOISE_TABLE = 1 << 19;

double amplitude(double db)
{
    return std::pow(10.0, db / 20.0);
}

// Turns of an oscillator from one tick to another, without the whole ones.
double turns(double freq, int64_t ticks, double tick_rate)
{
    return static_cast<double>(std::fmod(static_cast<long double>(freq) * ticks / tick_rate, 1.0L));
}

// out += gain * in. By components: the library's product looks for NaN in every sample.
void add_scaled(std::complex<double> gain, const std::complex<float>* in, size_t count, std::complex<float>* out)
{
    const auto re = static_cast<float>(gain.real());
    const auto im = static_cast<float>(gain.imag());
    const auto* x = reinterpret_cast<const float*>(in); // [complex.numbers.general]: an array of re, im
    auto* y = reinterpret_cast<float*>(out);
    for (size_t index = 0; index < 2 * count; index += 2) {
        y[index] += x[index] * re - x[index + 1] * im;
        y[index + 1] += x[index] * im + x[index + 1] * re;
    }
}

// out += gain * (in + compression * in * |in|^2).
void add_amplified(std::complex<double> gain, std::complex<double> compression, const std::complex<float>* in,
    size_t count, std::complex<float>* out)
{
    if (compression == 0.0)
        return add_scaled(gain, in, count, out);
    for (size_t index = 0; index < count; ++index) {
        const double power = std::norm(std::complex<double>(in[index]));
        add_scaled(gain * (1.0 + compression * power), in + index, 1, out + index);
    }
}

std::map<std::pair<size_t, size_t>, std::complex<double>> read_coupling(const std::string& path)
{
    std::ifstream file(path);
    if (!file)
        throw uhd::value_error("virtual USRP: coupling=" + path + ": neither random, ones, none nor a readable file");
    std::map<std::pair<size_t, size_t>, std::complex<double>> gains;
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        size_t rx_port = 0;
        size_t tx_port = 0;
        double re = 0;
        double im = 0;
        if (words >> rx_port >> tx_port >> re >> im)
            gains[{rx_port, tx_port}] = {re, im};
        else if (line.find_first_not_of(" \t\r") != std::string::npos)
            throw uhd::value_error("virtual USRP: coupling=" + path + ": not 'rx_port tx_port re im': " + line);
    }
    return gains;
}

} // namespace

std::shared_ptr<Medium> Medium::get(const Settings& settings)
{
    static std::mutex guard;
    static std::map<std::string, std::weak_ptr<Medium>> known;
    if (settings.medium.empty())
        return std::make_shared<Medium>(settings);
    std::lock_guard<std::mutex> lock(guard);
    auto found = known[settings.medium].lock();
    if (!found) {
        found = std::make_shared<Medium>(settings);
        known[settings.medium] = found;
    }
    return found;
}

// Begun on a whole second of a clock that all processes of a computer share: so are their PPS edges.
Medium::Medium(const Settings& given) : settings(given), _begin(std::chrono::floor<std::chrono::seconds>(Clock::now()))
{
    if (given.coupling != "random" && given.coupling != "ones" && given.coupling != "none")
        _listed = read_coupling(given.coupling);
    const double scale = amplitude(given.noise_db);
    _noise.resize(NOISE_TABLE);
    uint64_t bits = keyed(given.seed, Purpose::noise, {});
    for (auto& sample : _noise) {
        bits = mixed(bits);
        sample = std::complex<float>(scale * circular_gaussian(bits));
    }
}

int64_t Medium::now_ns() const
{
    const auto passed = Clock::now() - _begin;
    const auto host = std::chrono::duration_cast<std::chrono::nanoseconds>(passed).count();
    return static_cast<int64_t>(static_cast<long double>(host) * settings.speed);
}

// The 64 bits of a long double's mantissa hold months of ticks to a thousandth.
int64_t Medium::ticks(int64_t ns, double tick_rate)
{
    return static_cast<int64_t>(std::floor(static_cast<long double>(ns) * tick_rate / 1e9L));
}

int64_t Medium::ns(int64_t ticks, double tick_rate)
{
    return static_cast<int64_t>(std::ceil(static_cast<long double>(ticks) * 1e9L / tick_rate));
}

Medium::HostTime Medium::host_time(int64_t ns) const
{
    const auto host = static_cast<int64_t>(std::ceil(static_cast<long double>(ns) / settings.speed));
    return _begin + std::chrono::nanoseconds(host);
}

std::complex<double> Medium::coupling(size_t rx_port, size_t tx_port) const
{
    const double scale = amplitude(settings.coupling_db);
    if (settings.coupling == "none")
        return 0;
    if (settings.coupling == "ones")
        return scale;
    if (settings.coupling == "random") {
        const auto ends = std::minmax(rx_port, tx_port); // the air is reciprocal
        return scale * circular_gaussian(keyed(settings.seed, Purpose::coupling, {ends.first, ends.second}));
    }
    const auto found = _listed.find({rx_port, tx_port});
    return found == _listed.end() ? 0 : found->second;
}

void Medium::prune(Chain& transmitter) const
{
    int64_t oldest = now_ns();
    for (const auto& reader : _readers)
        oldest = std::min(oldest, reader.second);
    const int64_t delay = settings.delay + transmitter.loop_delay;
    auto& segments = transmitter.segments;
    while (!segments.empty() &&
           ns(segments.front().end() + (delay + 1) * segments.front().step, transmitter.tick_rate) < oldest)
        segments.pop_front();
}

void Medium::receive(
    const Chain& receiver, int64_t start, int64_t step, size_t count, std::complex<float>* out) const
{
    add_noise(receiver, start, step, count, out);
    bool heard = false;
    for (const auto& entry : _transmitters) {
        const auto transmitter = entry.lock();
        if (!transmitter || transmitter->segments.empty())
            continue;
        heard = true;
        add_transmitter(receiver, *transmitter, start, step, count, out);
    }
    if (!heard)
        return;
    auto* components = reinterpret_cast<float*>(out);
    for (size_t index = 0; index < 2 * count; ++index)
        components[index] = std::min(1.0f, std::max(-1.0f, components[index]));
}

// Overwrites `out`. Keyed by chain and absolute sample, so that it does not depend on how recv() is called.
void Medium::add_noise(
    const Chain& receiver, int64_t start, int64_t step, size_t count, std::complex<float>* out) const
{
    const int64_t first = floor_div(start, step);
    for (size_t done = 0; done < count;) {
        const int64_t sample = first + static_cast<int64_t>(done);
        const int64_t block = floor_div(sample, NOISE_BLOCK);
        const auto within = static_cast<size_t>(sample - block * static_cast<int64_t>(NOISE_BLOCK));
        const size_t length = std::min(count - done, NOISE_BLOCK - within);
        const uint64_t bits = keyed(settings.seed, Purpose::noise, {receiver.port, static_cast<uint64_t>(block)});
        const size_t place = bits % (NOISE_TABLE - NOISE_BLOCK) + within;
        std::copy_n(_noise.begin() + static_cast<std::ptrdiff_t>(place), length, out + done);
        done += length;
    }
}

void Medium::add_transmitter(const Chain& receiver, const Chain& transmitter, int64_t start, int64_t step,
    size_t count, std::complex<float>* out) const
{
    // In the transmitter's ticks, which are the receiver's unless their master clocks differ.
    const double ratio = transmitter.tick_rate / receiver.tick_rate;
    const auto first = static_cast<int64_t>(std::llround(static_cast<long double>(start) * ratio));
    const int64_t length = static_cast<int64_t>(std::llround(static_cast<double>(step) * ratio)) *
                           static_cast<int64_t>(count);
    for (const Segment& segment : transmitter.segments) {
        const int64_t delay = (settings.delay + transmitter.loop_delay) * segment.step;
        if (segment.start + delay > first + length + segment.step)
            continue;
        if (segment.end() + delay + segment.step < first)
            continue;
        add_segment(receiver, transmitter, segment, start, step, count, out);
    }
}

void Medium::add_segment(const Chain& receiver, const Chain& transmitter, const Segment& segment, int64_t start,
    int64_t step, size_t count, std::complex<float>* out) const
{
    const long double ratio = transmitter.tick_rate / receiver.tick_rate;
    const int64_t delay = (settings.delay + transmitter.loop_delay) * segment.step;
    const auto sent_at = [&](size_t k) { // the transmitter's tick whose sample arrives at receive sample k
        const int64_t tick = start + static_cast<int64_t>(k) * step;
        return static_cast<int64_t>(std::llround(tick * ratio)) - delay;
    };
    const auto index_of = [&](size_t k) { // to the nearest sample
        return floor_div(sent_at(k) - segment.start + segment.step / 2, segment.step);
    };
    const bool same_rate = ratio == 1 && step == segment.step;
    const int64_t shift = index_of(0);
    const double rate = receiver.tick_rate / static_cast<double>(step);
    const std::complex<double> path = coupling(receiver.port, transmitter.port) * receiver.gain * transmitter.gain;
    const auto samples = static_cast<int64_t>(segment.samples.size());

    size_t k = same_rate && shift < 0 ? static_cast<size_t>(std::min<int64_t>(-shift, count)) : 0;
    const size_t end = same_rate ? static_cast<size_t>(std::clamp<int64_t>(samples - shift, k, count)) : count;
    while (k < end) {
        // A stretch in which nobody retunes or changes a gain.
        int64_t rx_change = 0;
        int64_t tx_change = 0;
        const int64_t tick = start + static_cast<int64_t>(k) * step;
        const ChainState& rx = receiver.states.at(tick, rx_change);
        const ChainState& tx = transmitter.states.at(sent_at(k), tx_change);
        size_t stop = end;
        if (rx_change != NEVER)
            stop = std::min<int64_t>(stop, k + (rx_change - tick + step - 1) / step);
        while (tx_change != NEVER && stop > k + 1 && sent_at(stop - 1) >= tx_change)
            --stop;

        const double difference = transmitter.carrier(tx) - receiver.carrier(rx);
        if (std::abs(difference) < rate / 2) {
            const double turned = turns(difference, tick, receiver.tick_rate) +
                                  turns(receiver.digital(rx), receiver.stream, receiver.tick_rate) -
                                  turns(transmitter.digital(tx), segment.burst + delay, transmitter.tick_rate);
            const double phase = tx.lo_phase - rx.lo_phase + 2 * PI * turned;
            std::complex<double> gain = path * amplitude(tx.gain_db + rx.gain_db) * std::polar(1.0, phase);
            const std::complex<double> turn = std::polar(1.0, 2 * PI * difference / rate);
            const std::complex<double> compression =
                transmitter.compression * amplitude(2 * tx.gain_db); // of the amplifier as it is driven now
            const bool constant = same_rate && difference == 0;
            if (constant)
                add_amplified(gain, compression, segment.samples.data() + (shift + static_cast<int64_t>(k)), stop - k,
                    out + k);
            for (size_t n = k; n < stop && !constant; ++n) {
                const int64_t index = index_of(n);
                if (index >= 0 && index < samples)
                    add_amplified(gain, compression, segment.samples.data() + index, 1, out + n);
                gain *= turn;
            }
        }
        k = stop;
    }
}

} // namespace virtual_usrp

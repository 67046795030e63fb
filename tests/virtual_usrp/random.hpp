// SPDX-License-Identifier: GPL-3.0-or-later
// Random numbers that depend on what they are for, not on the order in which they are drawn: devices may be made in
// any order and threads may interleave, the model stays the same.
#pragma once

#include <cmath>
#include <complex>
#include <cstdint>
#include <initializer_list>

namespace virtual_usrp {

constexpr double PI = 3.14159265358979323846;

// What a draw is for: the first element of its key.
enum class Purpose : uint64_t { clock_offset = 1, pps_phase, lo_phase, chain_tx, chain_rx, coupling, ppm, noise };

// The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit turns half of the output bits.
inline uint64_t mixed(uint64_t value)
{
    value += 0x9e3779b97f4a7c15ULL;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
    return value ^ (value >> 31);
}

inline uint64_t keyed(uint64_t seed, Purpose purpose, std::initializer_list<uint64_t> key)
{
    uint64_t value = mixed(mixed(seed) ^ static_cast<uint64_t>(purpose));
    for (uint64_t part : key)
        value = mixed(value ^ mixed(part));
    return value;
}

// In (0, 1): never 0, so that a logarithm may follow.
inline double uniform(uint64_t bits)
{
    return (static_cast<double>(bits >> 11) + 0.5) * 0x1.0p-53;
}

// Circular complex Gaussian of variance 1 (Box and Muller).
inline std::complex<double> circular_gaussian(uint64_t bits)
{
    const double radius = std::sqrt(-std::log(uniform(bits)));
    return std::polar(radius, 2 * PI * uniform(mixed(bits)));
}

} // namespace virtual_usrp

// SPDX-License-Identifier: GPL-3.0-or-later
// Sample formats of the host: the model computes in complex float.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <string>
#include <uhd/exception.hpp>
#include <vector>

namespace virtual_usrp {

class HostFormat
{
public:
    explicit HostFormat(const std::string& name) : _kind(name == "fc32" ? FC32 : name == "fc64" ? FC64 : SC16)
    {
        if (_kind == SC16 && name != "sc16")
            throw uhd::value_error("virtual USRP: the host format " + name + " is none of fc32, fc64, sc16");
    }

    bool is_native() const { return _kind == FC32; }
    size_t item_size() const { return _kind == FC64 ? 16 : _kind == FC32 ? 8 : 4; }

    // Of a format that is not the native one.
    void from_model(const std::complex<float>* samples, size_t count, void* out) const
    {
        const auto* in = reinterpret_cast<const float*>(samples);
        for (size_t index = 0; index < 2 * count; ++index) {
            if (_kind == FC64)
                static_cast<double*>(out)[index] = in[index];
            else
                static_cast<int16_t*>(out)[index] = static_cast<int16_t>(std::lround(in[index] * FULL_SCALE));
        }
    }

    // Clipped to full scale, as the converter would.
    std::vector<std::complex<float>> to_model(const void* samples, size_t count) const
    {
        if (_kind == FC32)
            return clipped(static_cast<const float*>(samples), count, 1);
        if (_kind == FC64)
            return clipped(static_cast<const double*>(samples), count, 1);
        return clipped(static_cast<const int16_t*>(samples), count, 1 / FULL_SCALE);
    }

private:
    enum Kind { FC32, FC64, SC16 };
    static constexpr float FULL_SCALE = 32767;

    template <typename Number>
    static std::vector<std::complex<float>> clipped(const Number* in, size_t count, float scale)
    {
        std::vector<std::complex<float>> converted(count);
        auto* out = reinterpret_cast<float*>(converted.data());
        for (size_t index = 0; index < 2 * count; ++index)
            out[index] = std::min(1.0f, std::max(-1.0f, static_cast<float>(in[index]) * scale));
        return converted;
    }

    Kind _kind;
};

} // namespace virtual_usrp

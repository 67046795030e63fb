// SPDX-License-Identifier: GPL-3.0-or-later
// Sample formats of the host: the model computes in complex float.
#pragma once

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
    explicit HostFormat(const std::string& name) : _name(name)
    {
        if (name != "fc32" && name != "fc64" && name != "sc16")
            throw uhd::value_error("virtual USRP: the host format " + name + " is none of fc32, fc64, sc16");
    }

    bool is_native() const { return _name == "fc32"; }
    size_t item_size() const { return _name == "fc64" ? 16 : _name == "fc32" ? 8 : 4; }

    void from_model(const std::complex<float>* samples, size_t count, void* out) const
    {
        const auto* in = reinterpret_cast<const float*>(samples);
        for (size_t index = 0; index < 2 * count; ++index) {
            if (_name == "fc32")
                static_cast<float*>(out)[index] = in[index];
            else if (_name == "fc64")
                static_cast<double*>(out)[index] = in[index];
            else
                static_cast<int16_t*>(out)[index] = static_cast<int16_t>(std::lround(in[index] * FULL_SCALE));
        }
    }

    // Clipped to full scale, as the converter would.
    std::vector<std::complex<float>> to_model(const void* samples, size_t count) const
    {
        std::vector<std::complex<float>> converted(count);
        auto* out = reinterpret_cast<float*>(converted.data());
        for (size_t index = 0; index < 2 * count; ++index) {
            float value = 0;
            if (_name == "fc32")
                value = static_cast<const float*>(samples)[index];
            else if (_name == "fc64")
                value = static_cast<float>(static_cast<const double*>(samples)[index]);
            else
                value = static_cast<const int16_t*>(samples)[index] / FULL_SCALE;
            out[index] = std::fmin(1.0f, std::fmax(-1.0f, value));
        }
        return converted;
    }

private:
    static constexpr float FULL_SCALE = 32767;
    std::string _name;
};

} // namespace virtual_usrp

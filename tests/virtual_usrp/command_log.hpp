// SPDX-License-Identifier: GPL-3.0-or-later
// The log of a virtual USRP: one JSON object a line for every command, with the device time at which it arrived.
#pragma once

#include <complex>
#include <cstdint>
#include <sstream>
#include <string>

namespace virtual_usrp {

// One line; add() in order, values are numbers, words, truth values or complex numbers as [re, im].
class LogLine
{
public:
    explicit LogLine(const std::string& what);

    LogLine& add(const std::string& key, const std::string& value);
    LogLine& add(const std::string& key, const char* value) { return add(key, std::string(value)); }
    LogLine& add(const std::string& key, double value);
    LogLine& add(const std::string& key, int64_t value);
    LogLine& add(const std::string& key, uint64_t value) { return add(key, static_cast<int64_t>(value)); }
    LogLine& add(const std::string& key, bool value);
    LogLine& add(const std::string& key, std::complex<double> value);
    std::string text() const { return _text.str() + "}\n"; }

private:
    std::ostringstream& key(const std::string& name);
    std::ostringstream _text;
};

class CommandLog
{
public:
    // No file where `path` is empty.
    explicit CommandLog(const std::string& path);
    ~CommandLog();
    CommandLog(const CommandLog&) = delete;
    CommandLog& operator=(const CommandLog&) = delete;

    void write(const LogLine& line) const;

private:
    int _file = -1;
};

} // namespace virtual_usrp

// SPDX-License-Identifier: GPL-3.0-or-later
#include "command_log.hpp"

#include <fcntl.h>
#include <uhd/exception.hpp>
#include <unistd.h>

namespace virtual_usrp {

namespace {

std::string quoted(const std::string& text)
{
    std::string out = "\"";
    for (char letter : text) {
        if (letter == '"' || letter == '\\')
            out += '\\';
        out += static_cast<unsigned char>(letter) < ' ' ? ' ' : letter;
    }
    return out + "\"";
}

} // namespace

LogLine::LogLine(const std::string& what)
{
    _text.precision(17);
    _text << "{\"what\": " << quoted(what);
}

std::ostringstream& LogLine::key(const std::string& name)
{
    _text << ", " << quoted(name) << ": ";
    return _text;
}

LogLine& LogLine::add(const std::string& name, const std::string& value)
{
    key(name) << quoted(value);
    return *this;
}

LogLine& LogLine::add(const std::string& name, double value)
{
    key(name) << value;
    return *this;
}

LogLine& LogLine::add(const std::string& name, int64_t value)
{
    key(name) << value;
    return *this;
}

LogLine& LogLine::add(const std::string& name, bool value)
{
    key(name) << (value ? "true" : "false");
    return *this;
}

LogLine& LogLine::add(const std::string& name, std::complex<double> value)
{
    key(name) << "[" << value.real() << ", " << value.imag() << "]";
    return *this;
}

CommandLog::CommandLog(const std::string& path)
{
    if (path.empty())
        return;
    _file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (_file < 0)
        throw uhd::os_error("virtual USRP: cannot write the log " + path);
}

CommandLog::~CommandLog()
{
    if (_file >= 0)
        ::close(_file);
}

void CommandLog::write(const LogLine& line) const
{
    if (_file < 0)
        return;
    // One write() a line: the lines of several devices and processes in one file do not mix.
    const std::string text = line.text();
    if (::write(_file, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
        throw uhd::os_error("virtual USRP: the log cannot be written");
}

} // namespace virtual_usrp

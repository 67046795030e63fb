// SPDX-License-Identifier: GPL-3.0-or-later
#include "settings.hpp"

#include <algorithm>
#include <limits>
#include <sstream>
#include <uhd/exception.hpp>

namespace virtual_usrp {

namespace {

[[noreturn]] void refuse(const std::string& key, const std::string& text, const std::string& requirement)
{
    throw uhd::value_error("virtual USRP: " + key + "=" + text + ": " + requirement);
}

double number(const std::string& key, const std::string& text)
{
    size_t used = 0;
    double value = 0;
    try {
        value = std::stod(text, &used);
    } catch (const std::exception&) {
        used = std::string::npos;
    }
    if (used != text.size())
        refuse(key, text, "a number is wanted");
    return value;
}

std::vector<double> numbers(const std::string& key, const std::string& text)
{
    std::vector<double> values;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ':');)
        values.push_back(number(key, part));
    return values;
}

// Reads the arguments and refuses those that nobody knows: a misspelt fault must not make a test pass.
class Reader
{
public:
    explicit Reader(const uhd::device_addr_t& args) : _args(args) {}

    std::string text(const std::string& key, const std::string& fallback)
    {
        _known.insert(key);
        return _args.has_key(key) ? _args[key] : fallback;
    }

    double value(const std::string& key, double fallback)
    {
        const std::string given = text(key, "");
        return given.empty() ? fallback : number(key, given);
    }

    int64_t count(const std::string& key, int64_t fallback, int64_t least)
    {
        const double given = value(key, static_cast<double>(fallback));
        if (given != static_cast<int64_t>(given) || given < static_cast<double>(least))
            refuse(key, _args[key], "an integer of at least " + std::to_string(least) + " is wanted");
        return static_cast<int64_t>(given);
    }

    double positive(const std::string& key, double fallback)
    {
        const double given = value(key, fallback);
        if (!(given > 0))
            refuse(key, _args[key], "more than 0 is wanted");
        return given;
    }

    // The position of the given text in `options`; the first one is the default.
    size_t choice(const std::string& key, const std::vector<std::string>& options)
    {
        const std::string given = text(key, options.front());
        const auto found = std::find(options.begin(), options.end(), given);
        if (found == options.end())
            refuse(key, given, "one of the documented words is wanted");
        return static_cast<size_t>(found - options.begin());
    }

    std::vector<double> list(const std::string& key) { return numbers(key, text(key, "")); }

    std::set<size_t> boards(const std::string& key)
    {
        std::set<size_t> found;
        for (double board : list(key))
            found.insert(static_cast<size_t>(board));
        return found;
    }

    // (first, second) of "A:B", nothing where the key is absent.
    std::vector<double> pair(const std::string& key)
    {
        const std::vector<double> values = list(key);
        if (!values.empty() && values.size() != 2)
            refuse(key, text(key, ""), "two numbers, A:B, are wanted");
        return values;
    }

    // Complex numbers of RE:IM:RE:IM...
    std::vector<std::complex<double>> pairs(const std::string& key)
    {
        const std::vector<double> values = list(key);
        if (values.size() % 2 != 0)
            refuse(key, text(key, ""), "pairs of numbers, RE:IM, are wanted");
        std::vector<std::complex<double>> found;
        for (size_t index = 0; index < values.size(); index += 2)
            found.emplace_back(values[index], values[index + 1]);
        return found;
    }

    // (seconds, board, third) of SECONDS:BOARD[:THIRD], nothing where the key is absent.
    std::vector<double> board_fault(const std::string& key, double fallback)
    {
        std::vector<double> values = list(key);
        if (values.size() == 2)
            values.push_back(fallback);
        if (!values.empty() && values.size() != 3)
            refuse(key, text(key, ""), "SECONDS:BOARD, and a third number at most, are wanted");
        return values;
    }

    std::map<size_t, Outage> outage(const std::string& key)
    {
        std::map<size_t, Outage> found;
        if (const auto values = board_fault(key, std::numeric_limits<double>::infinity()); !values.empty())
            found[static_cast<size_t>(values[1])] = {values[0], values[2]};
        return found;
    }

    BurstFaults bursts(const std::string& key) { return BurstFaults(key, text(key, "")); }

    void finish()
    {
        // What UHD, gr-uhd and users put beside: identity of the device and settings of its transport.
        for (const char* key : {"type", "name", "product", "recv_frame_size", "send_frame_size", "num_recv_frames",
                 "num_send_frames", "recv_buff_size", "send_buff_size", "clock_source", "time_source"})
            _known.insert(key);
        for (const std::string& key : _args.keys())
            if (_known.count(key) == 0)
                refuse(key, _args[key], "no virtual USRP takes this argument");
    }

private:
    const uhd::device_addr_t& _args;
    std::set<std::string> _known;
};

} // namespace

BurstFaults::BurstFaults(const std::string& key, const std::string& text)
{
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ':');) {
        const size_t at = part.find('@');
        const int board = at == std::string::npos ? -1 : static_cast<int>(number(key, part.substr(at + 1)));
        _bursts.emplace(static_cast<uint64_t>(number(key, part.substr(0, at))), board);
    }
}

bool BurstFaults::hits(uint64_t burst, size_t board) const
{
    return _bursts.count({burst, -1}) != 0 || _bursts.count({burst, static_cast<int>(board)}) != 0;
}

Settings::Settings(const uhd::device_addr_t& args)
{
    Reader reader(args);
    num_mboards = static_cast<size_t>(reader.count("num_mboards", 1, 1));
    num_channels = static_cast<size_t>(reader.count("num_channels", 2, 1));
    dual = reader.choice("layout", {"single", "dual"}) == 1;
    lo_per_channel = reader.choice("lo_per_channel", {"0", "1"}) == 1;
    shared_events = reader.choice("shared_events", {"0", "1"}) == 1;
    serial = reader.text("serial", "V");
    master_clock_rate = reader.value("master_clock_rate", 0);
    first_board = static_cast<size_t>(reader.count("first_board", 0, 0));
    medium = reader.text("medium", "");
    log = reader.text("log", "");

    seed = static_cast<uint64_t>(reader.count("seed", 0, 0));
    speed = reader.positive("speed", 1);
    coupling = reader.text("coupling", "random");
    coupling_db = reader.value("coupling_db", -20);
    random_chains = reader.choice("gains", {"random", "unit"}) == 0;
    noise_db = reader.value("noise_db", -80);
    delay = reader.count("delay", 0, 0);

    for (double samples : reader.list("loop_delay"))
        loop_delay.push_back(static_cast<int64_t>(samples));
    loop_delay.resize(num_ports(), loop_delay.empty() ? 0 : loop_delay.back());
    compression = reader.pairs("compression");
    compression.resize(num_ports(), compression.empty() ? 0 : compression.back());
    lo_phase_quantum = std::vector<int>{-1, 90, 180, 0}[reader.choice("lo_phase_quantum", {"none", "90", "180", "0"})];
    lo_step = reader.value("lo_step", 0);
    lo_settle = reader.value("lo_settle", 0.001);
    nominal_gain = reader.value("nominal_gain", 0);
    ppm = reader.value("ppm", 0);
    rx_buffer = reader.positive("rx_buffer", 0.5);
    tx_buffer = static_cast<size_t>(reader.count("tx_buffer", 250000, 1));
    tx_latency = reader.value("tx_latency", 0);
    spp = static_cast<size_t>(reader.count("spp", 2000, 1));

    late = reader.bursts("late");
    underflow = reader.bursts("underflow");
    lost_ack = reader.bursts("lost_ack");
    overflow = reader.list("overflow");
    std::sort(overflow.begin(), overflow.end());
    after_overflow = static_cast<AfterOverflow>(reader.choice("after_overflow", {"restart", "continue", "stop"}));
    overflow_gap = reader.positive("overflow_gap", 0.01);
    overflow_shift = reader.value("overflow_shift", 0);
    unlocked = reader.boards("unlocked");
    lo_unlocked = reader.boards("lo_unlocked");
    ref_lost = reader.outage("ref_lost");
    lo_lost = reader.outage("lo_lost");
    stalled = reader.outage("stalled");
    if (const auto jump = reader.board_fault("clock_jump", 0); !jump.empty())
        clock_jump[static_cast<size_t>(jump[1])] = {jump[0], jump[2]};
    pps_missing = reader.boards("pps_missing");
    if (const auto skew = reader.pair("pps_skew"); !skew.empty())
        pps_skew[static_cast<size_t>(skew[0])] = static_cast<int64_t>(skew[1]);
    if (const auto late_edge = reader.pair("pps_late"); !late_edge.empty())
        pps_late[static_cast<size_t>(late_edge[0])] = late_edge[1];
    if (const auto vanishing = reader.pair("vanish_after"); !vanishing.empty())
        vanish[static_cast<size_t>(vanishing[1])] = vanishing[0];
    reader.finish();
}

} // namespace virtual_usrp

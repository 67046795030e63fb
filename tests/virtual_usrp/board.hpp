// SPDX-License-Identifier: GPL-3.0-or-later
// One motherboard: its clock, its PPS input, its synthesizers and its RF chains.
#pragma once

#include "command_log.hpp"
#include "medium.hpp"

#include <array>
#include <uhd/property_tree.hpp>
#include <uhd/types/direction.hpp>
#include <uhd/types/time_spec.hpp>
#include <uhd/usrp/subdev_spec.hpp>

namespace virtual_usrp {

enum Direction : size_t { RX = 0, TX = 1 };

class Board
{
public:
    Board(size_t index, std::shared_ptr<const Settings> settings, std::shared_ptr<Medium> medium,
        std::shared_ptr<CommandLog> log);

    // Puts the board's properties below /mboards/<index>; they take the medium's lock, everything below wants it held.
    void publish(const uhd::property_tree::sptr& tree);

    // -- time
    double tick_rate() const { return _tick_rate; }
    void set_tick_rate(double rate);
    int64_t network_now() const { return medium->now_ticks(_tick_rate); }
    int64_t device_now() { return network_now() + offset(); }
    int64_t to_network(const uhd::time_spec_t& device_time) { return device_time.to_ticks(_tick_rate) - offset(); }
    uhd::time_spec_t device_time(int64_t network_tick)
    {
        return uhd::time_spec_t::from_ticks(network_tick + offset(), _tick_rate);
    }
    uhd::time_spec_t last_pps();
    void set_time_now(const uhd::time_spec_t& time);
    void set_time_next_pps(const uhd::time_spec_t& time);
    void set_command_time(const uhd::time_spec_t& time);

    // -- rates, in ticks a sample
    int64_t step(Direction direction, size_t dsp) const { return _steps[direction][dsp]; }
    double set_rate(Direction direction, size_t dsp, double rate);

    // -- front ends
    double tune(Direction direction, size_t channel, double rf_freq);
    double tune_dsp(Direction direction, size_t channel, double dsp_freq);
    double set_gain(Direction direction, size_t channel, double gain_db);
    bool lo_locked(Direction direction, size_t channel) const;
    uhd::usrp::subdev_spec_t set_subdevices(Direction direction, const uhd::usrp::subdev_spec_t& spec);
    // The front ends in the order of the board's channels.
    const std::vector<size_t>& front_ends(Direction direction) const { return _front_ends[direction]; }
    const std::shared_ptr<Chain>& chain(Direction direction, size_t front_end) const
    {
        return _chains[direction][front_end];
    }

    // -- faults
    std::string name() const { return settings.serial + std::to_string(index); }
    bool vanished() const { return network_now() >= vanish_tick(); }
    int64_t vanish_tick() const;
    // The last tick before `network_tick` at which the board's receivers gave samples.
    int64_t last_given(int64_t network_tick) const;
    bool ref_locked() const;
    // Throws, as control of a board without a link does, if it has vanished.
    void require_link() const;

    // A line for the log with the board, its device time and, for a timed command, the requested time and the lead.
    LogLine line(const std::string& what, const uhd::time_spec_t* requested = nullptr);
    void write(const LogLine& entry) const { _log->write(entry); }

    const size_t index;
    const std::shared_ptr<const Settings> settings_owner; // streams and their boards may outlive the device
    const Settings& settings;
    const std::shared_ptr<Medium> medium;

private:
    int64_t offset();
    // Network tick of a moment that faults are counted by: seconds after the first stream command.
    int64_t fault_tick(double seconds) const;
    bool within(const std::map<size_t, Outage>& outages, int64_t network_tick) const;
    int64_t last_edge(int64_t network_tick) const;
    // When a command that arrives now takes effect.
    int64_t execution();
    const uhd::time_spec_t* requested() const { return _timed ? &_command_time : nullptr; }
    size_t synthesizer(size_t channel) const { return settings.lo_per_channel ? channel : 0; }
    double new_lo_phase(Direction direction, size_t synthesizer);
    double freq_error() const;
    void set_clock_source(const std::string& source);
    std::string subdevice(size_t front_end) const;
    std::string slot(size_t front_end) const;
    void log_truth();

    void publish_board(const uhd::property_tree::sptr& tree, const uhd::fs_path& root);
    void publish_time(const uhd::property_tree::sptr& tree, const uhd::fs_path& root);
    void publish_dsp(const uhd::property_tree::sptr& tree, const uhd::fs_path& path, Direction direction, size_t dsp);
    void publish_front_end(const uhd::property_tree::sptr& tree, const uhd::fs_path& path, Direction direction,
        size_t channel);

    const std::shared_ptr<CommandLog> _log;
    double _tick_rate;
    int64_t _offset;                 // device ticks = network ticks + offset
    int64_t _own_pps = 0;            // tick of the board's own PPS within a second
    int64_t _first_edge = 0;         // the last edge when the board was made
    int64_t _pending_edge = NEVER;   // PPS edge at which the offset becomes _pending_offset
    int64_t _pending_offset = 0;
    bool _jumped = false;            // the fault has happened
    bool _timed = false;             // a command time is set
    uhd::time_spec_t _command_time;
    std::string _clock_source = "internal";
    std::string _time_source = "internal";
    std::array<std::vector<std::shared_ptr<Chain>>, 2> _chains;
    std::array<std::vector<double>, 2> _rates; // as asked for
    std::array<std::vector<int64_t>, 2> _steps;
    std::array<std::vector<size_t>, 2> _front_ends;
    std::array<std::vector<uint64_t>, 2> _tunes;    // per synthesizer
    std::array<std::vector<int64_t>, 2> _lock_tick; // per synthesizer
};

} // namespace virtual_usrp

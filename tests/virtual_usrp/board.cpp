// SPDX-License-Identifier: GPL-3.0-or-later
#include "board.hpp"

#include "random.hpp"

#include <cmath>
#include <uhd/exception.hpp>

namespace virtual_usrp {

namespace {

constexpr double DEFAULT_TICK_RATE = 200e6;
constexpr double DEFAULT_RATE = 1e6;
constexpr double MOST_SECONDS = 1e9;        // what is later never happens
constexpr double LARGEST_CLOCK_OFFSET = 10; // seconds between boards that nobody has synchronised
constexpr const char* DIRECTION_NAMES[] = {"rx", "tx"};

uint64_t number(const Settings& settings, size_t index)
{
    return settings.first_board + index;
}

} // namespace

Board::Board(size_t board, std::shared_ptr<const Settings> given, std::shared_ptr<Medium> shared_medium,
    std::shared_ptr<CommandLog> log)
    : index(board), settings_owner(std::move(given)), settings(*settings_owner), medium(std::move(shared_medium)),
      _log(std::move(log)),
      _tick_rate(settings.master_clock_rate > 0 ? settings.master_clock_rate : DEFAULT_TICK_RATE)
{
    const uint64_t seed = medium->settings.seed;
    const uint64_t id = number(settings, index);
    _offset = std::llround(uniform(keyed(seed, Purpose::clock_offset, {id})) * LARGEST_CLOCK_OFFSET * _tick_rate);
    _own_pps = std::llround(uniform(keyed(seed, Purpose::pps_phase, {id})) * _tick_rate) % std::llround(_tick_rate);
    _first_edge = last_edge(network_now());
    for (Direction direction : {RX, TX}) {
        const size_t synthesizers = settings.lo_per_channel ? settings.num_channels : 1;
        _tunes[direction].assign(synthesizers, 0);
        _lock_tick[direction].assign(synthesizers, 0);
        _rates[direction].assign(settings.num_channels, DEFAULT_RATE);
        _steps[direction].assign(settings.num_channels, 1);
        for (size_t channel = 0; channel < settings.num_channels; ++channel) {
            auto chain = std::make_shared<Chain>();
            chain->port = id * settings.num_channels + channel;
            chain->transmits = direction == TX;
            chain->tick_rate = _tick_rate;
            if (medium->settings.random_chains) {
                const Purpose purpose = direction == TX ? Purpose::chain_tx : Purpose::chain_rx;
                const uint64_t bits = keyed(seed, purpose, {chain->port});
                chain->gain = std::polar(0.8 + 0.4 * uniform(bits), 2 * PI * uniform(mixed(bits)));
            }
            if (direction == TX) {
                chain->loop_delay = settings.loop_delay[index * settings.num_channels + channel];
                chain->compression = settings.compression[index * settings.num_channels + channel];
            }
            ChainState state;
            state.freq_error = freq_error();
            state.lo_phase = new_lo_phase(direction, synthesizer(channel));
            chain->states = Timeline(state);
            if (direction == TX)
                medium->join(chain);
            _chains[direction].push_back(std::move(chain));
            _front_ends[direction].push_back(channel);
            set_rate(direction, channel, DEFAULT_RATE);
        }
    }
    log_truth();
}

// What no radio tells: a test may hold measurements against it.
void Board::log_truth()
{
    for (size_t channel = 0; channel < settings.num_channels; ++channel) {
        const Chain& rx = *_chains[RX][channel];
        const Chain& tx = *_chains[TX][channel];
        write(line("port")
                  .add("channel", channel)
                  .add("port", rx.port)
                  .add("t", tx.gain)
                  .add("r", rx.gain)
                  .add("lo_phase_tx", tx.states.last().lo_phase)
                  .add("lo_phase_rx", rx.states.last().lo_phase)
                  .add("loop_delay", tx.loop_delay)
                  .add("compression", tx.compression));
        // Ports of all boards with a number up to this one's: together the boards list every pair once.
        for (size_t other = 0; other <= rx.port; ++other)
            write(LogLine("coupling").add("rx", rx.port).add("tx", other).add("h", medium->coupling(rx.port, other)));
    }
}

void Board::set_tick_rate(double rate)
{
    if (!(rate >= 1e6 && rate <= 1e9))
        throw uhd::value_error("virtual USRP: a master clock rate lies between 1 MHz and 1 GHz");
    const double ratio = rate / _tick_rate;
    _offset = std::llround(static_cast<long double>(offset()) * ratio);
    _own_pps = std::llround(static_cast<double>(_own_pps) * ratio);
    _pending_edge = NEVER; // as on hardware: a new master clock loses the time that was to be set
    _tick_rate = rate;
    _first_edge = last_edge(network_now());
    for (Direction direction : {RX, TX}) {
        std::fill(_lock_tick[direction].begin(), _lock_tick[direction].end(), network_now());
        for (size_t channel = 0; channel < settings.num_channels; ++channel) {
            _chains[direction][channel]->tick_rate = rate;
            _chains[direction][channel]->states.restart();
            _chains[direction][channel]->segments.clear();
            _steps[direction][channel] = std::max<int64_t>(1, std::llround(rate / _rates[direction][channel]));
        }
    }
    write(line("master_clock_rate").add("rate", rate));
}

double Board::set_rate(Direction direction, size_t dsp, double rate)
{
    if (!(rate > 0))
        throw uhd::value_error("virtual USRP: a sample rate is more than 0");
    _rates[direction][dsp] = rate;
    if (settings.master_clock_rate <= 0 && std::fmod(_tick_rate, rate) != 0)
        set_tick_rate(rate * std::max(1.0, std::floor(DEFAULT_TICK_RATE / rate)));
    _steps[direction][dsp] = std::max<int64_t>(1, std::llround(_tick_rate / rate));
    return _tick_rate / static_cast<double>(_steps[direction][dsp]);
}

int64_t Board::offset()
{
    const auto jump = settings.clock_jump.find(index);
    if (!_jumped && jump != settings.clock_jump.end() && network_now() >= fault_tick(jump->second.first)) {
        _jumped = true;
        _offset += std::llround(jump->second.second * _tick_rate);
    }
    if (network_now() >= _pending_edge) {
        _offset = _pending_offset;
        _pending_edge = NEVER;
    }
    return _offset;
}

int64_t Board::last_edge(int64_t network_tick) const
{
    const int64_t second = std::llround(_tick_rate);
    const auto late = settings.pps_late.find(index);
    const double common_phase = late == settings.pps_late.end() ? 0 : late->second * _tick_rate;
    const int64_t phase = _time_source == "internal" ? _own_pps : std::llround(common_phase);
    return floor_div(network_tick - phase, second) * second + phase;
}

uhd::time_spec_t Board::last_pps()
{
    const bool missing = settings.pps_missing.count(index) != 0;
    return device_time(missing ? _first_edge : last_edge(network_now()));
}

void Board::set_time_now(const uhd::time_spec_t& time)
{
    write(line("time_now").add("time", time.get_real_secs()));
    _pending_edge = NEVER;
    _offset = time.to_ticks(_tick_rate) - network_now();
}

void Board::set_time_next_pps(const uhd::time_spec_t& time)
{
    const auto skew = settings.pps_skew.find(index);
    const int64_t edges = 1 + (skew == settings.pps_skew.end() ? 0 : skew->second);
    offset();
    const int64_t after_edge = network_now() - last_edge(network_now());
    write(line("time_next_pps")
              .add("time", time.get_real_secs())
              .add("after_edge", static_cast<double>(after_edge) / _tick_rate));
    if (settings.pps_missing.count(index) != 0)
        return;
    const int64_t edge = last_edge(network_now()) + edges * std::llround(_tick_rate);
    _pending_edge = edge;
    _pending_offset = time.to_ticks(_tick_rate) - edge;
}

void Board::set_command_time(const uhd::time_spec_t& time)
{
    // UHD's way to clear the command time is to set it to zero.
    _timed = time.get_real_secs() != 0;
    _command_time = time;
}

int64_t Board::execution()
{
    return _timed ? std::max(network_now(), to_network(_command_time)) : network_now();
}

double Board::freq_error() const
{
    if (settings.ppm == 0 || _clock_source != "internal")
        return 0;
    const uint64_t bits = keyed(medium->settings.seed, Purpose::ppm, {number(settings, index)});
    return (2 * uniform(bits) - 1) * settings.ppm * 1e-6;
}

double Board::new_lo_phase(Direction direction, size_t synthesizer)
{
    // A real divider starts anywhere, a phase-synchronised one in one of few places: on its board's own phase plus a
    // multiple of the quantum.
    const uint64_t seed = medium->settings.seed;
    const uint64_t id = number(settings, index);
    const int quantum = settings.lo_phase_quantum;
    const uint64_t tune = _tunes[direction][synthesizer]++;
    const uint64_t drawn = keyed(seed, Purpose::lo_phase, {id, direction, synthesizer, tune + 1});
    if (quantum < 0)
        return 2 * PI * uniform(drawn);
    const double own = 2 * PI * uniform(keyed(seed, Purpose::lo_phase, {id, direction, synthesizer, 0}));
    if (quantum == 0)
        return own;
    return own + PI / 180 * quantum * static_cast<double>(drawn % static_cast<uint64_t>(360 / quantum));
}

double Board::tune(Direction direction, size_t channel, double rf_freq)
{
    const double freq = settings.lo_step > 0 ? std::round(rf_freq / settings.lo_step) * settings.lo_step : rf_freq;
    const int64_t tick = execution();
    const size_t changed = synthesizer(channel);
    const double phase = new_lo_phase(direction, changed);
    for (size_t other = 0; other < settings.num_channels; ++other) {
        if (synthesizer(other) != changed)
            continue;
        auto& states = _chains[direction][other]->states;
        ChainState state = states.last();
        state.lo_phase = phase;
        if (other == channel)
            state.rf_freq = freq;
        states.set(tick, state);
    }
    _lock_tick[direction][changed] = tick + std::llround(settings.lo_settle * _tick_rate);
    write(line("tune", requested())
              .add("direction", DIRECTION_NAMES[direction])
              .add("channel", channel)
              .add("port", _chains[direction][channel]->port)
              .add("freq", freq)
              .add("lo_phase", phase));
    return freq;
}

double Board::tune_dsp(Direction direction, size_t channel, double dsp_freq)
{
    auto& states = _chains[direction][channel]->states;
    ChainState state = states.last();
    state.dsp_freq = dsp_freq;
    states.set(execution(), state);
    write(line("tune_dsp", requested())
              .add("direction", DIRECTION_NAMES[direction])
              .add("channel", channel)
              .add("freq", dsp_freq));
    return dsp_freq;
}

double Board::set_gain(Direction direction, size_t channel, double gain_db)
{
    auto& states = _chains[direction][channel]->states;
    ChainState state = states.last();
    state.gain_db = gain_db - settings.nominal_gain;
    states.set(execution(), state);
    write(line("gain", requested())
              .add("direction", DIRECTION_NAMES[direction])
              .add("channel", channel)
              .add("gain_db", gain_db));
    return gain_db;
}

bool Board::lo_locked(Direction direction, size_t channel) const
{
    return settings.lo_unlocked.count(index) == 0 && !within(settings.lo_lost, network_now()) &&
           network_now() >= _lock_tick[direction][synthesizer(channel)];
}

bool Board::ref_locked() const
{
    return settings.unlocked.count(index) == 0 && !within(settings.ref_lost, network_now());
}

void Board::set_clock_source(const std::string& source)
{
    _clock_source = source;
    for (Direction direction : {RX, TX}) {
        for (const auto& chain : _chains[direction]) {
            ChainState state = chain->states.last();
            state.freq_error = freq_error();
            chain->states.set(network_now(), state);
        }
    }
    write(line("clock_source").add("source", source));
}

std::string Board::slot(size_t front_end) const
{
    return settings.dual ? std::string(1, static_cast<char>('A' + front_end)) : "A";
}

std::string Board::subdevice(size_t front_end) const
{
    return settings.dual ? "0" : std::string(1, static_cast<char>('A' + front_end));
}

uhd::usrp::subdev_spec_t Board::set_subdevices(Direction direction, const uhd::usrp::subdev_spec_t& spec)
{
    std::vector<size_t> chosen;
    for (const auto& pair : spec) {
        size_t front_end = 0;
        while (front_end < settings.num_channels &&
               !(pair == uhd::usrp::subdev_spec_pair_t(slot(front_end), subdevice(front_end))))
            ++front_end;
        if (front_end == settings.num_channels)
            throw uhd::value_error("virtual USRP: no subdevice " + pair.db_name + ":" + pair.sd_name);
        chosen.push_back(front_end);
    }
    _front_ends[direction] = chosen;
    write(line("subdevices").add("direction", DIRECTION_NAMES[direction]).add("spec", spec.to_string()));
    return spec;
}

int64_t Board::fault_tick(double seconds) const
{
    if (!medium->first_stream || seconds > MOST_SECONDS)
        return NEVER;
    return medium->ticks(*medium->first_stream + std::llround(seconds * 1e9), _tick_rate);
}

bool Board::within(const std::map<size_t, Outage>& outages, int64_t network_tick) const
{
    const auto found = outages.find(index);
    return found != outages.end() && network_tick >= fault_tick(found->second.begin) &&
           network_tick < fault_tick(found->second.begin + found->second.duration);
}

int64_t Board::vanish_tick() const
{
    const auto found = settings.vanish.find(index);
    return found == settings.vanish.end() ? NEVER : fault_tick(found->second);
}

int64_t Board::last_given(int64_t network_tick) const
{
    if (within(settings.stalled, network_tick))
        network_tick = fault_tick(settings.stalled.at(index).begin);
    return std::min(network_tick, vanish_tick());
}

void Board::require_link() const
{
    if (vanished())
        throw uhd::io_error("virtual USRP: board " + std::to_string(index) + " (" + name() + ") does not answer");
}

LogLine Board::line(const std::string& what, const uhd::time_spec_t* requested)
{
    const uhd::time_spec_t now = device_time(network_now());
    LogLine entry(what);
    entry.add("board", index).add("device_time", now.get_real_secs());
    if (requested != nullptr)
        entry.add("requested_time", requested->get_real_secs()).add("lead", (*requested - now).get_real_secs());
    return entry;
}

} // namespace virtual_usrp

// SPDX-License-Identifier: GPL-3.0-or-later
#include "rx_stream.hpp"

#include <algorithm>
#include <cmath>

namespace virtual_usrp {

namespace {

constexpr double RESTART_S = 0.05; // that RFNoC lets pass before it begins a stream anew after an overflow

} // namespace

RxStream::RxStream(std::vector<Source> sources, const uhd::stream_args_t& args)
    : _medium(sources.front().board->medium), _format(args.cpu_format.empty() ? "fc32" : args.cpu_format)
{
    const Settings& settings = sources.front().board->settings;
    _spp = static_cast<size_t>(args.args.cast<double>("spp", static_cast<double>(settings.spp)));
    for (Source& source : sources) {
        Channel channel;
        channel.chain = source.board->chain(RX, source.board->front_ends(RX).at(source.dsp));
        channel.board = std::move(source.board);
        channel.dsp = source.dsp;
        _channels.push_back(std::move(channel));
    }
}

RxStream::~RxStream()
{
    const Lock lock(_medium->mutex);
    _medium->forget(this);
}

void RxStream::issue_stream_cmd(const uhd::stream_cmd_t& command)
{
    if (command.stream_now && _channels.size() > 1 &&
        command.stream_mode != uhd::stream_cmd_t::STREAM_MODE_STOP_CONTINUOUS)
        throw uhd::runtime_error("virtual USRP: streams of several channels cannot start now and be aligned");
    const Lock lock(_medium->mutex);
    for (Channel& channel : _channels)
        obey(channel, command);
    _medium->changed.notify_all();
}

bool RxStream::command(const Board& board, size_t dsp, const uhd::stream_cmd_t& command)
{
    for (Channel& channel : _channels) {
        if (channel.board.get() != &board || channel.dsp != dsp)
            continue;
        obey(channel, command);
        _medium->changed.notify_all();
        return true;
    }
    return false;
}

void RxStream::obey(Channel& channel, const uhd::stream_cmd_t& command)
{
    Board& board = *channel.board;
    if (board.vanished())
        return; // nobody is there to obey; an exception here would end gr-uhd's stop() and with it the process
    const bool timed = !command.stream_now && command.stream_mode != uhd::stream_cmd_t::STREAM_MODE_STOP_CONTINUOUS;
    board.write(board.line("stream", timed ? &command.time_spec : nullptr)
                    .add("channel", channel.dsp)
                    .add("mode", std::string(1, static_cast<char>(command.stream_mode)))
                    .add("num_samps", command.num_samps));
    if (command.stream_mode == uhd::stream_cmd_t::STREAM_MODE_STOP_CONTINUOUS) {
        channel.started = false;
        channel.limit = static_cast<uint64_t>(std::max<int64_t>(0, produced(channel)));
        return;
    }
    if (timed && board.to_network(command.time_spec) < board.network_now()) {
        uhd::rx_metadata_t late;
        late.error_code = uhd::rx_metadata_t::ERROR_CODE_LATE_COMMAND;
        late.has_time_spec = true;
        late.time_spec = board.device_time(board.network_now());
        _errors.push_back(late);
        return;
    }
    if (!_medium->first_stream)
        _medium->first_stream = _medium->now_ns();
    if (_streaming)
        end(); // the channels' new commands come one by one
    channel.step = board.step(RX, channel.dsp);
    channel.device_start = timed ? command.time_spec.to_ticks(board.tick_rate()) : board.device_now();
    channel.network_start = timed ? board.to_network(command.time_spec) : board.network_now();
    const bool continuous = command.stream_mode == uhd::stream_cmd_t::STREAM_MODE_START_CONTINUOUS;
    channel.limit = continuous ? UINT64_MAX : command.num_samps;
    channel.more = command.stream_mode == uhd::stream_cmd_t::STREAM_MODE_NUM_SAMPS_AND_MORE;
    channel.started = true;
    begin();
}

// Once all channels have their command: samples are aligned by their device times, as UHD's streamers do.
void RxStream::begin()
{
    for (const Channel& channel : _channels)
        if (!channel.started)
            return;
    const Settings& settings = _channels.front().board->settings;
    int64_t latest = _channels.front().device_start;
    for (const Channel& channel : _channels)
        latest = std::max(latest, channel.device_start);
    for (Channel& channel : _channels) {
        const int64_t ahead = latest - channel.device_start;
        channel.started = false;
        if (ahead % channel.step != 0 || channel.step != _channels.front().step) {
            uhd::rx_metadata_t unaligned;
            unaligned.error_code = uhd::rx_metadata_t::ERROR_CODE_ALIGNMENT;
            _errors.push_back(unaligned);
            _streaming = false;
            return;
        }
        channel.device_start += ahead;
        channel.network_start += ahead;
        channel.chain->stream = channel.network_start;
    }
    const double rate = _channels.front().board->tick_rate() / static_cast<double>(_channels.front().step);
    _faults.clear();
    for (double seconds : settings.overflow)
        _faults.push_back(static_cast<uint64_t>(seconds * rate));
    _next = 0;
    _full = UINT64_MAX;
    _first = true;
    _streaming = true;
    const Channel& first = _channels.front();
    _medium->reads_from(this, Medium::ns(first.network_start, first.board->tick_rate()));
}

void RxStream::end()
{
    _streaming = false;
    _medium->forget(this);
}

// Samples were promised to follow. That a second command continues the first is not modelled: nobody here needs it.
void RxStream::break_chain()
{
    if (!_channels.front().more)
        return;
    uhd::rx_metadata_t broken;
    broken.error_code = uhd::rx_metadata_t::ERROR_CODE_BROKEN_CHAIN;
    broken.has_time_spec = true;
    broken.time_spec = time_of(_next);
    _errors.push_back(broken);
}

int64_t RxStream::produced(const Channel& channel) const
{
    const int64_t last = channel.board->last_given(channel.board->network_now());
    return floor_div(last - channel.network_start, channel.step);
}

uint64_t RxStream::limit() const
{
    uint64_t least = UINT64_MAX;
    for (const Channel& channel : _channels)
        least = std::min(least, channel.limit);
    return least;
}

uhd::time_spec_t RxStream::time_of(uint64_t sample) const
{
    const Channel& first = _channels.front();
    return uhd::time_spec_t::from_ticks(
        first.device_start + static_cast<int64_t>(sample) * first.step, first.board->tick_rate());
}

Medium::HostTime RxStream::when_produced(uint64_t sample) const
{
    int64_t latest = 0;
    for (const Channel& channel : _channels) {
        const int64_t tick = channel.network_start + static_cast<int64_t>(sample) * channel.step;
        latest = std::max(latest, Medium::ns(tick, channel.board->tick_rate()));
    }
    return _medium->host_time(latest);
}

// Streams of a given length are never begun anew.
AfterOverflow RxStream::after_overflow() const
{
    return limit() == UINT64_MAX ? _channels.front().board->settings.after_overflow : AfterOverflow::CONTINUE;
}

// An overflow: samples up to `sample` are lost.
void RxStream::overflow(uint64_t sample, uhd::rx_metadata_t& metadata)
{
    metadata.error_code = uhd::rx_metadata_t::ERROR_CODE_OVERFLOW;
    metadata.has_time_spec = true;
    metadata.time_spec = time_of(_next);
    Board& board = *_channels.front().board;
    board.write(board.line("overflow").add("time", metadata.time_spec.get_real_secs()).add("lost", sample - _next));
    _next = sample;
    _full = UINT64_MAX;
    if (after_overflow() == AfterOverflow::STOP)
        end();
    if (after_overflow() != AfterOverflow::RESTART)
        return;
    for (Channel& channel : _channels) { // any tick: a third of a sample off the grid
        channel.device_start += channel.step / 3;
        channel.network_start += channel.step / 3;
    }
}

size_t RxStream::ready(size_t wanted, uhd::rx_metadata_t& metadata)
{
    if (!_errors.empty()) {
        metadata = _errors.front();
        _errors.pop_front();
        return 0;
    }
    if (!_streaming)
        return 0;
    const Channel& first = _channels.front();
    const double rate = first.board->tick_rate() / static_cast<double>(first.step);
    const auto restart = static_cast<uint64_t>(RESTART_S * rate);
    const auto buffer = static_cast<uint64_t>(first.board->settings.rx_buffer * rate);
    int64_t least = INT64_MAX;
    int64_t most = 0;
    for (const Channel& channel : _channels) {
        least = std::min(least, produced(channel));
        most = std::max(most, produced(channel));
    }
    const auto fullest = std::min(static_cast<uint64_t>(most), limit());
    if (_full == UINT64_MAX && fullest > _next + buffer)
        _full = _next + buffer;
    if (_next >= limit()) {
        end();
        return 0;
    }
    if (_next == _full) {
        overflow(after_overflow() == AfterOverflow::RESTART ? fullest + restart : fullest, metadata);
        return 0;
    }
    uint64_t available = std::min({_full, limit(), static_cast<uint64_t>(std::max<int64_t>(0, least))});
    if (!_faults.empty()) {
        const uint64_t fault = _faults.front();
        const auto gap = static_cast<uint64_t>(first.board->settings.overflow_gap * rate);
        const uint64_t resumes = fault + (after_overflow() == AfterOverflow::RESTART ? restart : gap);
        if (_next >= fault) {
            if (static_cast<int64_t>(resumes) > least)
                return 0; // the radio is silent for so long
            _faults.erase(_faults.begin());
            if (resumes > _next)
                overflow(resumes, metadata);
            for (Channel& channel : _channels)
                channel.device_start += std::llround(channel.board->settings.overflow_shift * channel.step);
            return 0;
        }
        available = std::min(available, fault);
    }
    const uint64_t stop = std::min({_full, limit(), _faults.empty() ? UINT64_MAX : _faults.front()});
    if (available <= _next || (available - _next < wanted && available != stop))
        return 0;
    return static_cast<size_t>(std::min<uint64_t>(wanted, available - _next));
}

void RxStream::fill(const buffs_type& buffs, size_t offset, size_t count, uhd::rx_metadata_t& metadata)
{
    for (size_t index = 0; index < _channels.size(); ++index) {
        const Channel& channel = _channels[index];
        const int64_t start = channel.network_start + static_cast<int64_t>(_next) * channel.step;
        void* out = static_cast<char*>(buffs[index]) + offset * _format.item_size();
        if (_format.is_native()) {
            _medium->receive(*channel.chain, start, channel.step, count, static_cast<std::complex<float>*>(out));
            continue;
        }
        _scratch.resize(count);
        _medium->receive(*channel.chain, start, channel.step, count, _scratch.data());
        _format.from_model(_scratch.data(), count, out);
    }
    if (offset == 0) {
        metadata.has_time_spec = true;
        metadata.time_spec = time_of(_next);
        metadata.start_of_burst = _first;
    }
    _first = false;
    _next += count;
    metadata.end_of_burst = _next >= limit();
    if (metadata.end_of_burst) {
        end();
        break_chain();
        return;
    }
    const Channel& first = _channels.front();
    const int64_t tick = first.network_start + static_cast<int64_t>(_next) * first.step;
    _medium->reads_from(this, Medium::ns(tick, first.board->tick_rate()));
}

size_t RxStream::recv(const buffs_type& buffs, size_t nsamps_per_buff, uhd::rx_metadata_t& metadata, double timeout,
    bool one_packet)
{
    metadata.reset();
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(std::max(0.0, timeout)));
    size_t done = 0;
    Lock lock(_medium->mutex);
    while (done < nsamps_per_buff) {
        const size_t wanted = std::min(nsamps_per_buff - done, _spp);
        uhd::rx_metadata_t error;
        const size_t count = ready(wanted, error);
        if (error.error_code != uhd::rx_metadata_t::ERROR_CODE_NONE) {
            if (done == 0)
                metadata = error;
            else
                _errors.push_front(error); // reported by the next call, after the samples before it
            return done;
        }
        if (count > 0) {
            fill(buffs, done, count, metadata);
            done += count;
            if (one_packet || metadata.end_of_burst)
                return done;
            continue;
        }
        if (Clock::now() >= deadline)
            break;
        auto until = deadline;
        if (_streaming) // not at once: how long a made-up overflow stays silent is not known here
            until = std::min(
                until, std::max(when_produced(_next + wanted), Clock::now() + std::chrono::microseconds(100)));
        _medium->changed.wait_until(lock, until);
    }
    if (done == 0)
        metadata.error_code = uhd::rx_metadata_t::ERROR_CODE_TIMEOUT;
    return done;
}

} // namespace virtual_usrp

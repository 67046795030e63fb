// SPDX-License-Identifier: GPL-3.0-or-later
#include "tx_stream.hpp"

#include <algorithm>

namespace virtual_usrp {

using uhd::async_metadata_t;

void AsyncMessages::add(int64_t due_ns, const async_metadata_t& message)
{
    auto place = _queue.end();
    while (place != _queue.begin() && std::prev(place)->first > due_ns)
        --place;
    _queue.insert(place, {due_ns, message});
    if (_queue.size() > MOST)
        _queue.pop_front();
}

bool AsyncMessages::take(async_metadata_t& message)
{
    if (next() > _medium->now_ns())
        return false;
    message = _queue.front().second;
    _queue.pop_front();
    return true;
}

TxStream::TxStream(std::vector<Sink> sinks, const uhd::stream_args_t& args, std::shared_ptr<AsyncMessages> shared)
    : _medium(sinks.front().board->medium), _format(args.cpu_format.empty() ? "fc32" : args.cpu_format),
      _next_burst(args.args.get("underflow_policy", "next_packet") == "next_burst"), _messages(_medium),
      _shared(std::move(shared))
{
    const Settings& settings = sinks.front().board->settings;
    _spp = static_cast<size_t>(args.args.cast<double>("spp", static_cast<double>(settings.spp)));
    for (Sink& sink : sinks) {
        Channel channel;
        channel.chain = sink.board->chain(TX, sink.board->front_ends(TX).at(sink.dsp));
        channel.board = std::move(sink.board);
        channel.dsp = sink.dsp;
        channel.number = _channels.size();
        _channels.push_back(std::move(channel));
    }
}

void TxStream::report(const Channel& channel, async_metadata_t::event_code_t code, int64_t network_tick)
{
    async_metadata_t message{};
    const Board& board = *channel.board;
    message.channel = board.settings.shared_events ? board.front_ends(TX).at(channel.dsp) : channel.number;
    message.has_time_spec = true;
    message.time_spec = channel.board->device_time(network_tick);
    message.event_code = code;
    const int64_t due = Medium::ns(network_tick, channel.board->tick_rate());
    _messages.add(due, message);
    _shared->add(due, message);
    _medium->changed.notify_all();
}

size_t TxStream::room(Channel& channel) const
{
    const int64_t now = channel.board->network_now();
    int64_t used = 0;
    while (!channel.waiting.empty() && channel.waiting.front().second <= now)
        channel.waiting.pop_front();
    for (const auto& piece : channel.waiting)
        used += (piece.second - std::max(now, piece.first)) / step(channel);
    const auto size = static_cast<int64_t>(channel.board->settings.tx_buffer);
    return static_cast<size_t>(std::max<int64_t>(0, size - used));
}

int64_t TxStream::dry_ns() const
{
    int64_t earliest = NEVER;
    for (const Channel& channel : _channels)
        if (channel.in_burst && !channel.dropping && !channel.starved)
            earliest = std::min(earliest, Medium::ns(channel.next, channel.board->tick_rate()));
    return earliest;
}

void TxStream::check_underflow(Channel& channel)
{
    if (!channel.in_burst || channel.dropping || channel.starved || channel.board->network_now() <= channel.next)
        return;
    channel.starved = true;
    report(channel, async_metadata_t::EVENT_CODE_UNDERFLOW, channel.next);
    Board& board = *channel.board;
    board.write(board.line("underflow").add("channel", channel.dsp).add("burst", channel.bursts - 1));
}

void TxStream::check_underflow()
{
    for (Channel& channel : _channels)
        check_underflow(channel);
}

void TxStream::start_burst(Channel& channel, const uhd::tx_metadata_t& metadata)
{
    Board& board = *channel.board;
    const uint64_t number = channel.bursts++;
    channel.in_burst = true;
    channel.starved = false;
    channel.dropping = false;
    channel.sent = 0;
    // The time is looked at when the packet is at the head of the queue, behind all bursts before it.
    const int64_t latency = std::llround(board.settings.tx_latency * board.tick_rate());
    const int64_t earliest = std::max(now(channel) + latency, channel.next);
    int64_t start = earliest;
    if (metadata.has_time_spec) {
        start = board.to_network(metadata.time_spec);
        channel.dropping = start < earliest || board.settings.late.hits(number, board.index);
    }
    board.write(board.line("burst", metadata.has_time_spec ? &metadata.time_spec : nullptr)
                    .add("channel", channel.dsp)
                    .add("burst", number)
                    .add("start", board.device_time(start).get_real_secs())
                    .add("late", channel.dropping));
    if (channel.dropping) // by a fault: as if it had waited for its time somewhere on the way
        report(channel, async_metadata_t::EVENT_CODE_TIME_ERROR, std::max(now(channel), start));
    else
        channel.next = channel.burst = start;
}

// gr-uhd gives every packet of a timed burst its time: one that comes after its time is late, although the burst began.
void TxStream::continue_timed(Channel& channel, const uhd::tx_metadata_t& metadata)
{
    Board& board = *channel.board;
    const int64_t start = board.to_network(metadata.time_spec);
    const int64_t earliest = channel.starved ? now(channel) : channel.next;
    channel.starved = false;
    channel.dropping = start < earliest;
    if (channel.dropping)
        report(channel, async_metadata_t::EVENT_CODE_TIME_ERROR, now(channel));
    else
        channel.next = start;
}

void TxStream::end_burst(Channel& channel)
{
    Board& board = *channel.board;
    const uint64_t number = channel.bursts - 1;
    channel.in_burst = false;
    if (channel.dropping)
        return;
    if (board.settings.underflow.hits(number, board.index) && channel.sent > 0) {
        // The second half never reached the radio.
        auto& segment = channel.chain->segments.back();
        const auto lost = std::min(segment.samples.size(), static_cast<size_t>(channel.sent) / 2);
        segment.samples.resize(segment.samples.size() - lost);
        const int64_t dry = channel.next - static_cast<int64_t>(lost) * step(channel);
        report(channel, async_metadata_t::EVENT_CODE_UNDERFLOW, dry);
    }
    if (!board.settings.lost_ack.hits(number, board.index))
        report(channel, async_metadata_t::EVENT_CODE_BURST_ACK, channel.next);
    board.write(board.line("burst_end")
                    .add("channel", channel.dsp)
                    .add("burst", number)
                    .add("samples", channel.sent)
                    .add("time", board.device_time(channel.next).get_real_secs()));
}

void TxStream::packet(Channel& channel, const void* samples, size_t count, const uhd::tx_metadata_t& metadata)
{
    check_underflow(channel);
    // Empty packets begin a burst only if they say so: gr-uhd ends streams with an empty end of burst.
    if (metadata.start_of_burst || (!channel.in_burst && count > 0))
        start_burst(channel, metadata);
    else if (channel.in_burst && metadata.has_time_spec && !channel.dropping)
        continue_timed(channel, metadata);
    if (channel.starved && count > 0) {
        channel.starved = false;
        channel.dropping = _next_burst;
        channel.next = now(channel);
    }
    if (channel.in_burst && !channel.dropping && count > 0) {
        const int64_t ticks = step(channel);
        channel.chain->append(channel.burst, channel.next, ticks, _format.to_model(samples, count));
        const int64_t last = channel.next + ticks * static_cast<int64_t>(count);
        if (!channel.waiting.empty() && channel.waiting.back().second == channel.next)
            channel.waiting.back().second = last;
        else
            channel.waiting.emplace_back(channel.next, last);
        channel.next = last;
        channel.sent += static_cast<int64_t>(count);
        _medium->prune(*channel.chain);
    }
    if (metadata.end_of_burst && channel.in_burst)
        end_burst(channel);
}

size_t TxStream::send(
    const buffs_type& buffs, size_t nsamps_per_buff, const uhd::tx_metadata_t& metadata, double timeout)
{
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(std::max(0.0, timeout)));
    size_t done = 0;
    Lock lock(_medium->mutex);
    do {
        size_t count = nsamps_per_buff - done;
        // A whole packet, or nothing: the radio takes no single samples.
        const size_t least = std::min({count, _spp, _channels.front().board->settings.tx_buffer});
        for (Channel& channel : _channels)
            count = std::min(count, channel.board->vanished() ? 0 : room(channel));
        if (count < least) {
            if (Clock::now() >= deadline)
                return done;
            _medium->changed.wait_until(lock, std::min(deadline, Clock::now() + std::chrono::milliseconds(1)));
            continue;
        }
        _now_ns = _medium->now_ns(); // one for all channels: an untimed burst begins at once on all of them
        uhd::tx_metadata_t part = metadata;
        part.start_of_burst = metadata.start_of_burst && done == 0;
        part.has_time_spec = metadata.has_time_spec && done == 0;
        part.end_of_burst = metadata.end_of_burst && done + count == nsamps_per_buff;
        for (size_t index = 0; index < _channels.size(); ++index) {
            const char* samples = static_cast<const char*>(buffs[index]) + done * _format.item_size();
            packet(_channels[index], samples, count, part);
        }
        done += count;
    } while (done < nsamps_per_buff);
    return done;
}

bool TxStream::recv_async_msg(async_metadata_t& message, double timeout)
{
    const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                             std::chrono::duration<double>(std::max(0.0, timeout)));
    Lock lock(_medium->mutex);
    AsyncMessages& messages = _channels.front().board->settings.shared_events ? *_shared : _messages;
    while (true) {
        check_underflow();
        if (messages.take(message))
            return true;
        if (Clock::now() >= deadline)
            return false;
        const int64_t next = std::min(messages.next(), dry_ns());
        auto until = deadline;
        if (next != NEVER)
            until = std::min(until, std::max(_medium->host_time(next), Clock::now() + std::chrono::microseconds(100)));
        _medium->changed.wait_until(lock, until);
    }
}

} // namespace virtual_usrp

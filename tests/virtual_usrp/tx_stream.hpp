// SPDX-License-Identifier: GPL-3.0-or-later
#pragma once

#include "board.hpp"
#include "conversion.hpp"

#include <deque>
#include <uhd/rfnoc/actions.hpp>
#include <uhd/stream.hpp>
#include <uhd/types/metadata.hpp>

namespace virtual_usrp {

// What the radio tells about transmissions, each message at its time. Guarded by the medium's mutex.
class AsyncMessages
{
public:
    explicit AsyncMessages(std::shared_ptr<Medium> medium) : _medium(std::move(medium)) {}

    void add(int64_t due_ns, const uhd::async_metadata_t& message);
    // Network time of the first message to come, NEVER without one.
    int64_t next() const { return _queue.empty() ? NEVER : _queue.front().first; }
    bool take(uhd::async_metadata_t& message);

private:
    static constexpr size_t MOST = 10000; // unread messages; the oldest are lost
    std::shared_ptr<Medium> _medium;
    std::deque<std::pair<int64_t, uhd::async_metadata_t>> _queue;
};

// What gr-uhd's usrp_sink writes: bursts of some channels, each placed at its time if it comes before.
class TxStream : public uhd::tx_streamer
{
public:
    struct Sink
    {
        std::shared_ptr<Board> board;
        size_t dsp;
    };

    // `shared` is the device's queue, which gets a copy of every message, as on USRPs of the second generation.
    TxStream(std::vector<Sink> sinks, const uhd::stream_args_t& args, std::shared_ptr<AsyncMessages> shared);

    size_t get_num_channels() const override { return _channels.size(); }
    size_t get_max_num_samps() const override { return _spp; }
    size_t send(const buffs_type& buffs, size_t nsamps_per_buff, const uhd::tx_metadata_t& metadata,
        double timeout) override;
    bool recv_async_msg(uhd::async_metadata_t& message, double timeout) override;
    virtual void post_output_action(const std::shared_ptr<uhd::rfnoc::action_info>&, const size_t) {} // as in RxStream

    // Notices bursts that have run dry. Wants the medium's lock.
    void check_underflow();
    // Network time at which a burst runs dry unless more comes.
    int64_t dry_ns() const;

private:
    struct Channel
    {
        std::shared_ptr<Board> board;
        size_t number; // within the stream
        size_t dsp;
        std::shared_ptr<Chain> chain;
        uint64_t bursts = 0;   // begun so far
        bool in_burst = false; // between its start and its end
        bool dropping = false; // the rest of the burst is thrown away
        bool starved = false;  // ran dry; waits for the next packet
        int64_t burst = 0;     // network tick of the burst's first sample
        int64_t next = 0;      // network tick after the last sample
        int64_t sent = 0;      // samples of this burst
        std::deque<std::pair<int64_t, int64_t>> waiting; // (first, last) ticks of what is not sent yet
    };

    size_t room(Channel& channel) const;
    void check_underflow(Channel& channel);
    void packet(Channel& channel, const void* samples, size_t count, const uhd::tx_metadata_t& metadata);
    void start_burst(Channel& channel, const uhd::tx_metadata_t& metadata);
    void continue_timed(Channel& channel, const uhd::tx_metadata_t& metadata);
    void end_burst(Channel& channel);
    void report(const Channel& channel, uhd::async_metadata_t::event_code_t code, int64_t network_tick);
    int64_t now(const Channel& channel) const { return Medium::ticks(_now_ns, channel.board->tick_rate()); }
    int64_t step(const Channel& channel) const { return channel.board->step(TX, channel.dsp); }

    std::vector<Channel> _channels;
    std::shared_ptr<Medium> _medium;
    HostFormat _format;
    size_t _spp;
    bool _next_burst;    // underflow_policy=next_burst
    int64_t _now_ns = 0; // of the send() at work
    AsyncMessages _messages;
    std::shared_ptr<AsyncMessages> _shared;
};

} // namespace virtual_usrp

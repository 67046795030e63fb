// SPDX-License-Identifier: GPL-3.0-or-later
#pragma once

#include "board.hpp"
#include "conversion.hpp"

#include <deque>
#include <uhd/rfnoc/actions.hpp>
#include <uhd/stream.hpp>
#include <uhd/types/metadata.hpp>

namespace virtual_usrp {

// What gr-uhd's usrp_source reads: samples of some channels, aligned by their device times.
class RxStream : public uhd::rx_streamer
{
public:
    struct Source
    {
        std::shared_ptr<Board> board;
        size_t dsp;
    };

    RxStream(std::vector<Source> sources, const uhd::stream_args_t& args);
    ~RxStream() override;

    size_t get_num_channels() const override { return _channels.size(); }
    size_t get_max_num_samps() const override { return _spp; }
    size_t recv(const buffs_type& buffs, size_t nsamps_per_buff, uhd::rx_metadata_t& metadata, double timeout,
        bool one_packet) override;
    void issue_stream_cmd(const uhd::stream_cmd_t& command) override;
    // Newer versions of UHD demand this one, older ones have nothing to override; there are no actions here.
    virtual void post_input_action(const std::shared_ptr<uhd::rfnoc::action_info>&, const size_t) {}

    // A command for one channel, through the property tree; true if it is one of this stream's.
    bool command(const Board& board, size_t dsp, const uhd::stream_cmd_t& command);

private:
    struct Channel
    {
        std::shared_ptr<Board> board;
        size_t dsp;
        std::shared_ptr<Chain> chain;
        bool started = false;      // by a command that has not been taken up by begin()
        int64_t device_start = 0;  // ticks
        int64_t network_start = 0; // ticks
        int64_t step = 1;          // ticks a sample
        uint64_t limit = UINT64_MAX;
        bool more = false; // another command was promised
    };

    void obey(Channel& channel, const uhd::stream_cmd_t& command);
    void begin();
    void end();
    void break_chain();
    int64_t produced(const Channel& channel) const; // samples since the start
    // Samples that may be read now, up to `wanted`; 0 with an error in the metadata, or with neither: wait.
    size_t ready(size_t wanted, uhd::rx_metadata_t& metadata);
    void fill(const buffs_type& buffs, size_t offset, size_t count, uhd::rx_metadata_t& metadata);
    void overflow(uint64_t sample, uhd::rx_metadata_t& metadata);
    AfterOverflow after_overflow() const;
    uhd::time_spec_t time_of(uint64_t sample) const;
    uint64_t limit() const;
    Medium::HostTime when_produced(uint64_t sample) const;

    std::vector<Channel> _channels;
    std::shared_ptr<Medium> _medium;
    HostFormat _format;
    size_t _spp;
    std::vector<std::complex<float>> _scratch;
    std::deque<uhd::rx_metadata_t> _errors;
    bool _streaming = false;
    bool _first = false;            // the next packet is the first of a burst
    uint64_t _next = 0;             // sample to be read next
    uint64_t _full = UINT64_MAX;    // sample at which the buffer ran over
    std::vector<uint64_t> _faults;  // samples at which overflows are to be made up, ascending
};

} // namespace virtual_usrp

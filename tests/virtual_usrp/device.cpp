// SPDX-License-Identifier: GPL-3.0-or-later
// A UHD device without a radio: libuhd loads this library from UHD_MODULE_PATH and offers `type=virtual`, to
// everything that uses UHD. Only public headers are needed. settings.hpp lists the device arguments.
#include "rx_stream.hpp"
#include "tx_stream.hpp"

#include <algorithm>
#include <uhd/device.hpp>
#include <uhd/utils/static.hpp>

namespace virtual_usrp {

namespace {

class Device : public uhd::device
{
public:
    explicit Device(const uhd::device_addr_t& args)
        : _settings(std::make_shared<const Settings>(args)), _medium(Medium::get(*_settings))
    {
        _type = uhd::device::USRP;
        _tree = uhd::property_tree::make();
        _tree->create<std::string>("/name").set("virtual USRP");
        const auto log = std::make_shared<CommandLog>(_settings->log);
        const Lock lock(_medium->mutex);
        _messages = std::make_shared<AsyncMessages>(_medium);
        for (size_t index = 0; index < _settings->num_mboards; ++index) {
            _boards.push_back(std::make_shared<Board>(index, _settings, _medium, log));
            _boards.back()->publish(_tree);
            for (size_t dsp = 0; dsp < _settings->num_channels; ++dsp)
                publish_stream_command(*_boards.back(), dsp);
        }
    }

    uhd::rx_streamer::sptr get_rx_stream(const uhd::stream_args_t& args) override
    {
        const Lock lock(_medium->mutex);
        log_streamer("rx", args);
        auto stream = std::make_shared<RxStream>(places<RxStream::Source>(RX, args), args);
        _rx_streams.push_back(stream);
        return stream;
    }

    uhd::tx_streamer::sptr get_tx_stream(const uhd::stream_args_t& args) override
    {
        const Lock lock(_medium->mutex);
        log_streamer("tx", args);
        auto stream = std::make_shared<TxStream>(places<TxStream::Sink>(TX, args), args, _messages);
        _tx_streams.push_back(stream);
        return stream;
    }

    bool recv_async_msg(uhd::async_metadata_t& message, double timeout) override
    {
        const auto deadline = Clock::now() +
                              std::chrono::microseconds(static_cast<int64_t>(1e6 * std::max(0.0, timeout)));
        Lock lock(_medium->mutex);
        while (true) {
            int64_t next = NEVER;
            for (const auto& entry : _tx_streams) {
                if (const auto stream = entry.lock()) {
                    stream->check_underflow();
                    next = std::min(next, stream->dry_ns());
                }
            }
            if (_messages->take(message))
                return true;
            const auto now = Clock::now();
            if (now >= deadline)
                return false;
            next = std::min(next, _messages->next());
            auto until = deadline;
            if (next != NEVER)
                until = std::min(until, std::max(_medium->host_time(next), now + std::chrono::microseconds(100)));
            _medium->changed.wait_until(lock, until);
        }
    }

private:
    // The boards and their channels that a stream's channel numbers mean.
    template <typename Place>
    std::vector<Place> places(Direction direction, const uhd::stream_args_t& args) const
    {
        std::vector<Place> all;
        for (const auto& board : _boards)
            for (size_t dsp = 0; dsp < board->front_ends(direction).size(); ++dsp)
                all.push_back({board, dsp});
        std::vector<Place> chosen;
        for (size_t channel : args.channels.empty() ? std::vector<size_t>{0} : args.channels) {
            if (channel >= all.size())
                throw uhd::index_error("virtual USRP: no channel " + std::to_string(channel));
            chosen.push_back(all[channel]);
        }
        return chosen;
    }

    void log_streamer(const std::string& direction, const uhd::stream_args_t& args)
    {
        _boards.front()->write(LogLine("streamer").add("direction", direction).add("channels", args.channels.size()));
    }

    void publish_stream_command(const Board& board, size_t dsp)
    {
        const uhd::fs_path root = uhd::fs_path("/mboards") / board.index / "rx_dsps" / dsp;
        _tree->create<uhd::stream_cmd_t>(root / "stream_cmd")
            .add_coerced_subscriber([this, &board, dsp](const uhd::stream_cmd_t& command) {
                const Lock lock(_medium->mutex);
                // The newest stream of a channel is the one in use.
                for (auto entry = _rx_streams.rbegin(); entry != _rx_streams.rend(); ++entry)
                    if (const auto stream = entry->lock(); stream && stream->command(board, dsp, command))
                        return;
            });
    }

    const std::shared_ptr<const Settings> _settings;
    std::shared_ptr<Medium> _medium;
    std::vector<std::shared_ptr<Board>> _boards;
    std::shared_ptr<AsyncMessages> _messages;
    std::vector<std::weak_ptr<RxStream>> _rx_streams;
    std::vector<std::weak_ptr<TxStream>> _tx_streams;
};

uhd::device_addrs_t find(const uhd::device_addr_t& hint)
{
    // Found when asked for, or when everything is (uhd_find_devices adds find_all): never in the place of a radio that
    // somebody wants.
    const bool everything = hint.keys().empty() || hint.keys() == std::vector<std::string>{"find_all"};
    if (!everything && hint.get("type", "") != "virtual")
        return {};
    uhd::device_addr_t found = hint;
    if (found.has_key("find_all"))
        found.pop("find_all");
    found["type"] = "virtual";
    found["product"] = "virtual";
    if (!found.has_key("serial"))
        found["serial"] = "V";
    return {found};
}

uhd::device::sptr make(const uhd::device_addr_t& args)
{
    return std::make_shared<Device>(args);
}

} // namespace

UHD_STATIC_BLOCK(register_virtual_usrp)
{
    uhd::device::register_device(&find, &make, uhd::device::USRP);
}

} // namespace virtual_usrp

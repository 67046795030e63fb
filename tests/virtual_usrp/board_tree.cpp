// SPDX-License-Identifier: GPL-3.0-or-later
// The property tree of a board: the paths that multi_usrp and uhd_usrp_probe read.
#include "board.hpp"

#include <uhd/exception.hpp>
#include <uhd/types/ranges.hpp>
#include <uhd/types/sensors.hpp>
#include <uhd/usrp/dboard_eeprom.hpp>
#include <uhd/usrp/mboard_eeprom.hpp>

namespace virtual_usrp {

namespace {

using Words = std::vector<std::string>;

const uhd::meta_range_t GAINS(0.0, 60.0, 0.5);      // dB
const uhd::meta_range_t FREQUENCIES(10e6, 6e9, 0);  // Hz
const uhd::meta_range_t BANDWIDTHS(100e3, 400e6, 0);
const Words SOURCES = {"internal", "external", "gpsdo"};

std::string accepted(const Words& options, const std::string& value)
{
    for (const std::string& option : options)
        if (option == value)
            return value;
    throw uhd::value_error("virtual USRP: there is no " + value + " here");
}

template <typename T>
void constant(const uhd::property_tree::sptr& tree, const uhd::fs_path& path, const T& value)
{
    tree->create<T>(path).set(value);
}

} // namespace

void Board::publish(const uhd::property_tree::sptr& tree)
{
    const uhd::fs_path root = uhd::fs_path("/mboards") / index;
    publish_board(tree, root);
    publish_time(tree, root);
    for (Direction direction : {RX, TX}) {
        const std::string prefix = direction == RX ? "rx" : "tx";
        for (size_t channel = 0; channel < settings.num_channels; ++channel) {
            publish_dsp(tree, root / (prefix + "_dsps") / channel, direction, channel);
            const uhd::fs_path board = root / "dboards" / slot(channel);
            publish_front_end(tree, board / (prefix + "_frontends") / subdevice(channel), direction, channel);
            const uhd::fs_path codec = root / (prefix + "_codecs") / slot(channel);
            if (tree->exists(codec))
                continue;
            constant<std::string>(tree, codec / "name", "virtual converter");
            constant<int>(tree, codec / "gains", 0); // makes the directory, which multi_usrp lists
            constant(tree, board / (prefix + "_eeprom"), uhd::usrp::dboard_eeprom_t());
        }
    }
}

void Board::publish_board(const uhd::property_tree::sptr& tree, const uhd::fs_path& root)
{
    constant<std::string>(tree, root / "name", settings.shared_events ? "B210" : "virtual");
    constant<std::string>(tree, root / "fw_version", "1.0");
    constant<std::string>(tree, root / "fpga_version", "1.0");
    uhd::usrp::mboard_eeprom_t eeprom;
    eeprom["name"] = name();
    eeprom["serial"] = name();
    constant(tree, root / "eeprom", eeprom);

    tree->create<double>(root / "tick_rate")
        .set_coercer([this](double rate) {
            const Lock lock(medium->mutex);
            require_link();
            if (rate != _tick_rate)
                set_tick_rate(rate);
            return rate;
        })
        .set_publisher([this] {
            const Lock lock(medium->mutex);
            return _tick_rate;
        });

    for (Direction direction : {RX, TX}) {
        uhd::usrp::subdev_spec_t all;
        for (size_t channel = 0; channel < settings.num_channels; ++channel)
            all.emplace_back(slot(channel), subdevice(channel));
        tree->create<uhd::usrp::subdev_spec_t>(root / (direction == RX ? "rx_subdev_spec" : "tx_subdev_spec"))
            .set(all) // before the coercer: the first value is no command
            .set_coercer([this, direction](const uhd::usrp::subdev_spec_t& spec) {
                const Lock lock(medium->mutex);
                require_link();
                return set_subdevices(direction, spec);
            });
    }

    tree->create<std::string>(root / "clock_source/value")
        .set("internal")
        .set_coercer([this](const std::string& source) {
            const Lock lock(medium->mutex);
            require_link();
            set_clock_source(accepted(SOURCES, source));
            return source;
        });
    constant(tree, root / "clock_source/options", SOURCES);
    tree->create<uhd::sensor_value_t>(root / "sensors/ref_locked").set_publisher([this] {
        const Lock lock(medium->mutex);
        require_link();
        return uhd::sensor_value_t("Ref", ref_locked(), "locked", "unlocked");
    });
}

void Board::publish_time(const uhd::property_tree::sptr& tree, const uhd::fs_path& root)
{
    tree->create<uhd::time_spec_t>(root / "time/now")
        .set_publisher([this] {
            const Lock lock(medium->mutex);
            require_link();
            return device_time(network_now());
        })
        .add_coerced_subscriber([this](const uhd::time_spec_t& time) {
            const Lock lock(medium->mutex);
            require_link();
            set_time_now(time);
        });
    tree->create<uhd::time_spec_t>(root / "time/pps")
        .set_publisher([this] {
            const Lock lock(medium->mutex);
            require_link();
            return last_pps();
        })
        .add_coerced_subscriber([this](const uhd::time_spec_t& time) {
            const Lock lock(medium->mutex);
            require_link();
            set_time_next_pps(time);
        });
    tree->create<uhd::time_spec_t>(root / "time/cmd").add_coerced_subscriber([this](const uhd::time_spec_t& time) {
        const Lock lock(medium->mutex);
        require_link();
        set_command_time(time);
    });
    tree->create<std::string>(root / "time_source/value")
        .set("internal")
        .set_coercer([this](const std::string& source) {
            const Lock lock(medium->mutex);
            require_link();
            _time_source = accepted(SOURCES, source);
            write(line("time_source").add("source", source));
            return source;
        });
    constant(tree, root / "time_source/options", SOURCES);
}

void Board::publish_dsp(
    const uhd::property_tree::sptr& tree, const uhd::fs_path& path, Direction direction, size_t dsp)
{
    tree->create<double>(path / "rate/value")
        .set_coercer([this, direction, dsp](double rate) {
            const Lock lock(medium->mutex);
            require_link();
            return set_rate(direction, dsp, rate);
        })
        .set_publisher([this, direction, dsp] {
            const Lock lock(medium->mutex);
            return _tick_rate / static_cast<double>(step(direction, dsp));
        });
    tree->create<uhd::meta_range_t>(path / "rate/range").set_publisher([this] {
        const Lock lock(medium->mutex);
        return uhd::meta_range_t(_tick_rate / 65536, _tick_rate, 0);
    });
    tree->create<double>(path / "freq/value")
        .set(0)
        .set_coercer([this, direction, dsp](double freq) {
            const Lock lock(medium->mutex);
            require_link();
            const auto& chosen = front_ends(direction);
            return dsp < chosen.size() ? tune_dsp(direction, chosen[dsp], freq) : freq;
        });
    tree->create<uhd::meta_range_t>(path / "freq/range").set_publisher([this] {
        const Lock lock(medium->mutex);
        return uhd::meta_range_t(-_tick_rate / 2, _tick_rate / 2, 0);
    });
}

void Board::publish_front_end(
    const uhd::property_tree::sptr& tree, const uhd::fs_path& path, Direction direction, size_t channel)
{
    constant<std::string>(tree, path / "name", "virtual");
    constant<std::string>(tree, path / "connection", "IQ");
    constant(tree, path / "enabled", true);
    constant(tree, path / "use_lo_offset", false);

    tree->create<double>(path / "freq/value")
        .set(1e9)
        .set_coercer([this, direction, channel](double freq) {
            const Lock lock(medium->mutex);
            require_link();
            return tune(direction, channel, FREQUENCIES.clip(freq));
        });
    constant(tree, path / "freq/range", FREQUENCIES);
    tree->create<double>(path / "gains/PGA/value")
        .set(settings.nominal_gain)
        .set_coercer([this, direction, channel](double gain_db) {
            const Lock lock(medium->mutex);
            require_link();
            return set_gain(direction, channel, GAINS.clip(gain_db, true));
        });
    constant(tree, path / "gains/PGA/range", GAINS);

    tree->create<double>(path / "bandwidth/value")
        .set(BANDWIDTHS.stop())
        .set_coercer([](double bandwidth) { return BANDWIDTHS.clip(bandwidth); });
    constant(tree, path / "bandwidth/range", BANDWIDTHS);
    const Words antennas = direction == RX ? Words{"RX2", "TX/RX"} : Words{"TX/RX"};
    tree->create<std::string>(path / "antenna/value").set(antennas.front()).set_coercer([antennas](const auto& name) {
        return accepted(antennas, name);
    });
    constant(tree, path / "antenna/options", antennas);
    tree->create<uhd::sensor_value_t>(path / "sensors/lo_locked").set_publisher([this, direction, channel] {
        const Lock lock(medium->mutex);
        require_link();
        return uhd::sensor_value_t("LO", lo_locked(direction, channel), "locked", "unlocked");
    });
}

} // namespace virtual_usrp

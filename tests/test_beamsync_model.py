# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix model against every sample formed, and the phase estimators against their bound and targets."""

import numpy as np
import pytest
from gnuradio.dmimo.core import beamsync
from gnuradio.dmimo.experiments import beamsync_model as model


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def rmse(error):
    return float(np.sqrt(np.mean(np.asarray(error, float) ** 2)))


def rmse_ratio(first, second):
    """Ratio of two RMSE of independent trials, and its standard error."""
    parts = [np.asarray(e, float) ** 2 for e in (first, second)]
    spread = sum(np.var(p) / len(p) / np.mean(p) ** 2 for p in parts)
    ratio = np.sqrt(np.mean(parts[0]) / np.mean(parts[1]))
    return ratio, 0.5 * ratio * np.sqrt(spread)


def explicit_errors(rng, g_e, c_a, c_b, x, noise_var, returned, *, rounds=1, stage_two=0.0, stage_three=0.0):
    """Phase errors (T, rounds), of each round by itself, of stages I to III with every sample and an SVD per trial."""
    num_trials, num_leader, num_follower = g_e.shape
    pilots = np.linalg.qr(complex_normal(rng, num_leader, num_leader))[0]
    sigma = np.sqrt(noise_var)
    out = np.empty((num_trials, rounds))
    for t in range(num_trials):
        g, gt = g_e[t], g_e[t].T
        heard = c_a[t] * gt @ pilots.T + sigma * complex_normal(rng, num_follower, num_leader)
        a = np.conj(np.linalg.svd(heard)[0][:, 0])
        for k in range(rounds):
            y_a = c_b[t] * np.outer(g @ a, x) * np.exp(-1j * stage_two)
            y_a = y_a + sigma * complex_normal(rng, num_leader, len(x))
            if returned == "matched":
                y_a = np.outer(y_a @ np.conj(x), x)
            sent = np.conj(y_a) * np.sqrt(np.sum(np.abs(x) ** 2) / np.sum(np.abs(y_a) ** 2))
            y_b = c_a[t] * gt @ sent * np.exp(1j * stage_three) + sigma * complex_normal(rng, num_follower, len(x))
            out[t, k] = np.angle(a @ y_b @ x * np.conj(c_a[t] * np.conj(c_b[t])))
            a = np.conj(y_b @ x) / np.linalg.norm(y_b @ x)
    return out


def unequal(rng, num_trials):
    """Five leader and eight follower antennas whose gains differ by 10 dB and more, the same ones in each trial."""
    amplitude_a, amplitude_b = np.geomspace(0.5, 2.0, 5), np.geomspace(1.6, 0.6, 8)
    c_a, c_b = 1.4 * np.exp(2j * np.pi * rng.random(num_trials)), 0.6 * np.exp(2j * np.pi * rng.random(num_trials))
    return amplitude_a[:, None] * complex_normal(rng, num_trials, 5, 8) * amplitude_b, c_a, c_b


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_errors_of_the_model_have_the_law_of_errors_from_every_sample(returned):
    """Two rounds at -5 dB, where noise times noise, the scale of the return and the direction all matter."""
    rng = np.random.default_rng(1)
    x = complex_normal(rng, 7) * np.array([1.0, 0.2, 3.0, 0.0, 1.0, 1.0, 2.0])
    noise_var = 10**0.5
    explicit = explicit_errors(rng, *unequal(rng, 6000), x, noise_var, returned, rounds=2)
    draws = model.draw_pairs(rng, 40000, 5, 8, len(x), rounds=2)
    g_e, c_a, c_b = unequal(rng, 40000)
    draws = draws._replace(g_e=g_e, c_leader=c_a, c_follower=c_b)
    a = model.pilot_direction(draws, noise_var, method="eigh")
    result = model.exchange(draws, a, noise_var, np.sum(np.abs(x) ** 2), returned=returned)
    for k, error in enumerate(np.angle(result.phasor).T):
        ratio, deviation = rmse_ratio(error, explicit[:, k])
        assert deviation < 0.025
        assert abs(ratio - 1) < 3.5 * deviation, (k, ratio, deviation)
        # Not only the mean square: the middle of the law as well.
        share = np.mean(np.abs(error) < np.median(np.abs(explicit[:, k])))
        assert abs(share - 0.5) < 3.5 * 0.5 / np.sqrt(6000)


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_return_samples_have_the_law_of_errors_from_every_sample(returned):
    rng = np.random.default_rng(2)
    x = complex_normal(rng, 6)
    noise_var, stage_two, stage_three = 1.0, 0.1 + 0.3 * np.arange(6), 0.2 + 0.25 * np.arange(6)
    explicit = explicit_errors(
        rng, *unequal(rng, 6000), x, noise_var, returned, stage_two=stage_two, stage_three=stage_three
    )[:, 0]
    draws = model.draw_pairs(rng, 40000, 5, 8, 6)
    g_e, c_a, c_b = unequal(rng, 40000)
    draws = draws._replace(g_e=g_e, c_leader=c_a, c_follower=c_b)
    a = model.pilot_direction(draws, noise_var)
    u = model.return_samples(
        rng, draws, a, noise_var, x, stage_two=stage_two, stage_three=stage_three, returned=returned
    )
    error = beamsync.phase_offset(u[:, None, :], np.ones(1), x)
    ratio, deviation = rmse_ratio(error, explicit)
    assert abs(ratio - 1) < 3.5 * deviation, (ratio, deviation)
    shift = np.mean(error) - np.mean(explicit)
    assert abs(shift) < 3.5 * np.std(explicit) / np.sqrt(6000)
    assert abs(np.mean(explicit)) > 1.0  # the oscillators' turn is what is compared


@pytest.mark.parametrize("sizes", [(5, 8), (8, 5), (6, 6), (1, 4), (4, 1)])
def test_reduced_channels_have_the_law_of_full_ones(sizes):
    """Largest eigenvalue and energy of the channel, and errors at -3 dB: within 3.5 standard errors."""
    values = []
    for reduced in (False, True):
        rng = np.random.default_rng(11)
        draws = model.draw_pairs(rng, 20000, *sizes, 20, reduced=reduced)
        result = model.exchange(draws, model.pilot_direction(draws, 2.0), 2.0, 20)
        energy = np.sum(np.abs(draws.g_e) ** 2, axis=(-2, -1))
        top = np.linalg.svd(draws.g_e, compute_uv=False)[:, 0] ** 2
        values.append((energy, energy**2, top, top**2, model.errors(result)[:, 0] ** 2))
    for full, ours in zip(*values, strict=True):
        spread = np.sqrt((np.var(full) + np.var(ours)) / 20000)
        assert abs(np.mean(full) - np.mean(ours)) < 3.5 * spread
    with pytest.raises(ValueError, match="reduced"):
        model.draw_pairs(np.random.default_rng(0), 1, 2, 2, 3, gains="normal", reduced=True)


def test_normal_gains_are_those_of_every_antenna():
    """|c|^2 = |t|^2 / |r|^2 is a ratio of exponentials, and the channel's rows share the gain of their antenna."""
    draws = model.draw_pairs(np.random.default_rng(3), 20000, 3, 4, 10, gains="normal")
    for c in (draws.c_leader, draws.c_follower):
        assert np.mean(np.abs(c) < 1) == pytest.approx(0.5, abs=3.5 * 0.5 / np.sqrt(20000))
    # E|g|^4 of a product of three independent CN(0, 1) is 2^3.
    energy = np.abs(draws.g_e) ** 2
    assert np.mean(energy**2) == pytest.approx(8, rel=0.25)
    row = np.mean(energy[:, 0, 0] * energy[:, 0, 1])
    assert row == pytest.approx(2, rel=0.2)
    unit = model.draw_pairs(np.random.default_rng(3), 100, 3, 4, 10)
    np.testing.assert_allclose(np.abs(unit.c_leader), 1)
    with pytest.raises(ValueError, match='gains = "rayleigh"'):
        model.draw_pairs(np.random.default_rng(3), 1, 3, 4, 10, gains="rayleigh")


def trials(num_antennas, snr_db, num_trials, *, seed, rounds=1, dtype=np.complex64):
    rng = np.random.default_rng(seed)
    draws = model.draw_pairs(rng, num_trials, num_antennas, num_antennas, 100, rounds=rounds, dtype=dtype)
    return draws, 10 ** (-snr_db / 10)


def test_phase_error_is_within_3_percent_of_the_bound_at_20_db():
    """16 antennas, N = 100, each error over the bound of its own channel: a standard error of 0.5 %."""
    draws, noise_var = trials(16, 20, 20000, seed=4)
    error = model.errors(model.exchange(draws, model.pilot_direction(draws, noise_var), noise_var, 100))[:, 0]
    bound = model.bound(draws, noise_var, 100)
    assert rmse(error) / np.sqrt(np.mean(bound)) == pytest.approx(1, abs=0.03)
    assert rmse(error / np.sqrt(bound)) == pytest.approx(1, abs=0.02)


def test_gain_of_each_antenna_doubling_is_that_of_the_bound():
    errors, bounds = [], []
    for num_antennas, count in ((4, 20000), (8, 10000), (16, 6000), (32, 3000)):
        draws, noise_var = trials(num_antennas, 20, count, seed=5)
        a = model.pilot_direction(draws, noise_var)
        errors.append(model.errors(model.exchange(draws, a, noise_var, 100))[:, 0])
        bounds.append(np.mean(model.bound(draws, noise_var, 100)))
    gain_db = -20 * np.diff(np.log10([rmse(e) for e in errors]))
    bound_db = -10 * np.diff(np.log10(bounds))
    # Standard errors of 0.08 to 0.14 dB.
    np.testing.assert_allclose(gain_db, bound_db, atol=0.3)
    assert gain_db[2] == pytest.approx(3.0, abs=0.5)


def test_matched_return_halves_the_error_at_minus_10_db():
    draws, noise_var = trials(16, -10, 8000, seed=6)
    result = model.phase_trials(draws, noise_var, 100)
    assert rmse(result.simple) > 2 * rmse(result.matched)
    assert rmse(result.matched) < 1.3 * np.sqrt(np.mean(result.bound))


@pytest.mark.parametrize("snr_db", [10, 20, 30])
def test_matched_return_is_never_worse(snr_db):
    """The same draws in both: what differs is the leader's noise outside x. Paired standard errors."""
    draws, noise_var = trials(16, snr_db, 6000, seed=7)
    a = model.pilot_direction(draws, noise_var)
    plain, matched = (
        model.errors(model.exchange(draws, a, noise_var, 100, returned=returned))[:, 0].astype(float) ** 2
        for returned in ("conjugate", "matched")
    )
    difference = matched - plain
    assert np.mean(difference) < 2 * np.std(difference) / np.sqrt(len(difference))
    assert np.mean(matched) < 1.001 * np.mean(plain)


def test_nls_and_simple_errors_meet_at_high_snr_and_the_genie_is_never_worse():
    low, high = (model.phase_trials(*trials(16, snr, 4000, seed=8), 100) for snr in (0, 30))
    assert rmse(low.nls) < rmse(low.simple)
    assert rmse(low.exact) < rmse(low.nls)
    assert rmse(high.nls) == pytest.approx(rmse(high.simple), rel=0.01)
    assert rmse(high.exact) == pytest.approx(np.sqrt(np.mean(high.bound)), rel=0.03)


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_rounds_lower_the_error_at_low_snr_at_equal_energy(returned):
    """Four rounds of a quarter of the length against one, -10 dB: the later ones have a better direction."""
    noise_var, rounds = 10.0, {}
    for count in (1, 4):
        rng, num_samples = np.random.default_rng(9), 100 // count
        draws = model.draw_pairs(rng, 8000, 16, 16, num_samples, rounds=count, dtype=np.complex64)
        a = model.pilot_direction(draws, noise_var)
        rounds[count] = model.errors(model.exchange(draws, a, noise_var, num_samples, returned=returned))
    assert rmse(rounds[4][:, 3]) < 0.85 * rmse(rounds[1])
    assert np.all(np.diff([rmse(e) for e in rounds[4].T]) < 0)


def test_directions_of_rounds_converge_to_the_channels_own():
    draws, noise_var = trials(16, -5, 500, seed=10, rounds=4)
    result = model.exchange(draws, model.pilot_direction(draws, noise_var), noise_var, 100, returned="matched")
    best = model.exact_direction(draws)[:, None]
    loss = 1 - np.abs(np.sum(result.directions * np.conj(best), axis=-1)) ** 2
    median = np.median(loss, axis=0)
    assert np.all(np.diff(median) < 0)
    assert median[3] < 0.3 * median[0]


def test_split_energy_adds_up_and_knows_the_papers_share():
    pilot, sync = model.split_energy(16 + 200, 16 / 216, 16)
    assert (pilot, sync) == (pytest.approx(1), pytest.approx(100))
    pilot, sync = model.split_energy(50.0, 0.3, 8, rounds=3)
    assert 8 * pilot + 2 * 3 * sync == pytest.approx(50)
    with pytest.raises(ValueError, match="share = 1"):
        model.split_energy(1.0, 1.0, 2)


def test_concatenated_draws_give_the_trials_of_each():
    parts = [model.draw_pairs(np.random.default_rng(seed), 3, 4, 5, 9) for seed in (1, 2)]
    both = model.phase_trials(model.concatenate(parts), 0.1, 9)
    each = [model.phase_trials(part, 0.1, 9) for part in parts]
    for k in range(len(both)):
        np.testing.assert_allclose(both[k], np.concatenate([e[k] for e in each]), rtol=1e-9)

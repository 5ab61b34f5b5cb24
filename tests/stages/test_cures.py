"""The cures of stage 2 against the papers' definitions: by hand, by brute force in NumPy, and by finite differences."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as distributions

from lae_jax import losses, stages
from lae_jax.configs import common
from lae_jax.runtime.errors import InputError
from lae_jax.stages import cure_losses, cures, feature_smoothing, method_losses


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def given(name, **changed):
    config = common.get_config().cure
    config.name = name
    config.update(changed)
    return config


def slope(function, x, step=1e-6):
    """Central differences of a function of an array."""
    x, result = np.asarray(x, np.float64), np.zeros(np.shape(x))
    for place in np.ndindex(*x.shape):
        move = np.zeros(x.shape)
        move[place] = step
        result[place] = (float(function(jnp.asarray(x + move))) - float(function(jnp.asarray(x - move)))) / (2 * step)
    return result


def brute_ranks(row):
    """1 for the largest, divided by their number."""
    return np.array([1 + sum(other > one for other in row) for one in row]) / len(row)


def test_the_defaults_of_the_config_are_the_published_settings():
    published = dataclasses.asdict(cures.Settings())
    assert {"name": "none", **published} == common.get_config().cure.to_dict()
    assert (published["fds_momentum"], published["lds_power"]) == (0.9, 0.5)
    assert (published["rank_sim_weight"], published["rank_sim_strength"]) == (100, 2)


def test_ranks_are_those_of_brute_force_and_equal_scores_share_the_better_one():
    scores = np.round(np.random.default_rng(0).normal(size=(5, 7)), 1)
    scores[:, 2] = scores[:, 5]
    ranked = jax.jit(cure_losses.ranks)
    found = np.asarray(ranked(scores, np.ones(7, bool)))
    np.testing.assert_allclose(found, [brute_ranks(row) for row in scores], rtol=1e-6)
    np.testing.assert_allclose(
        cure_losses.ranks(jnp.array([[0.3, 0.9, 0.3]]), jnp.ones(3, bool)), [[2 / 3, 1 / 3, 2 / 3]]
    )
    present = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    found = np.asarray(ranked(scores, present))[:, present]
    np.testing.assert_allclose(found, [brute_ranks(row) for row in scores[:, present]], rtol=1e-6)


def test_the_gradient_of_ranks_is_that_of_the_solver(double):
    """The solver looks for the permutation with the smallest product with the scores, by trying all of them."""
    permutations = np.array([*itertools.permutations((1, 2, 3, 4))])
    scores, gradient = np.array([[0.2, 0.9, 0.5, 0.4]]), np.array([[0.3, 0.1, -0.4, 0.05]])

    def solved(row):
        return permutations[np.argmin(permutations @ row)] / 4

    assert solved(scores[0]).tolist() == [1.0, 0.25, 0.5, 0.75]
    for strength in (0.1, 2.0):
        _, pull = jax.vjp(
            lambda a, s=strength: cure_losses.blackbox_ranks(a, jnp.ones(4, bool), s), jnp.asarray(scores)
        )
        (found,) = pull(jnp.asarray(gradient))
        expected = (solved(scores[0] + strength * gradient[0]) - solved(scores[0])) / strength
        np.testing.assert_allclose(found[0], expected, rtol=1e-12)
    assert np.abs(expected).max() > 0


def brute_rank_similarity(features, ages):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [(brute_ranks(unit @ one), brute_ranks(-np.abs(ages - age))) for one, age in zip(unit, ages, strict=True)]
    return sum(((of_features - of_labels) ** 2).mean() for of_features, of_labels in pairs)


def test_rank_sim_is_the_sum_of_the_squared_differences_of_ranks(double):
    similarity = jax.jit(lambda *given: cure_losses.rank_similarity(*given, 2.0))
    rng = np.random.default_rng(1)
    features, ages = rng.normal(size=(6, 4)), np.array([3.0, 20.0, 21.0, 22.0, 60.0, 95.0])
    found = similarity(jnp.asarray(features), jnp.asarray(ages), jnp.ones(6))
    np.testing.assert_allclose(found, brute_rank_similarity(features, ages), rtol=1e-12)
    # Features on a circle, whose cosines have the order of the ages: ranks agree but for the two ties of the labels.
    angles = ages / 100
    ordered = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert float(similarity(jnp.asarray(ordered), jnp.asarray(ages), jnp.ones(6))) < 0.02
    # By hand: ages 10, 20, 40. The rows of ranks x 3 are 123, 213, 321 by label, and 132, 213, 231 by these features.
    angles = np.array([0.0, 1.5, -1.2])
    three = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = similarity(jnp.asarray(three), jnp.array([10.0, 20.0, 40.0]), jnp.ones(3))
    np.testing.assert_allclose(found, (2 + 0 + 2) / 9 / 3, rtol=1e-12)


def test_rank_sim_takes_one_image_of_each_whole_age_and_leaves_the_others(double):
    rng = np.random.default_rng(2)
    features, ages = rng.normal(size=(5, 3)), np.array([20.2, 40.0, 19.9, 63.0, 40.0])
    priority = np.array([0.9, 0.1, 0.3, 0.5, 0.2])
    kept = [0, 3, 4]

    @jax.jit
    def loss(x):
        return cure_losses.rank_similarity(x, jnp.asarray(ages), jnp.asarray(priority), 2.0)

    np.testing.assert_allclose(
        loss(jnp.asarray(features)), brute_rank_similarity(features[kept], ages[kept]), rtol=1e-12
    )
    slopes = jax.jit(jax.grad(lambda x: 100 * loss(x)))
    gradient = np.asarray(slopes(jnp.asarray(features)))
    assert np.isfinite(gradient).all() and not gradient[[1, 2]].any() and np.abs(gradient[kept]).max() > 0
    # Ages that no image has do not take part: with three ages in all the gradient is the same.
    of_three = jax.jit(jax.grad(lambda x: 100 * cure_losses.rank_similarity(x, jnp.arange(3.0), jnp.ones(3), 2.0)))
    whole = jax.jit(jax.grad(lambda x: 100 * cure_losses.rank_similarity(x, jnp.arange(3.0), jnp.ones(3), 2.0, 3)))
    np.testing.assert_allclose(of_three(jnp.asarray(features[kept])), whole(jnp.asarray(features[kept])), atol=1e-12)
    assert np.isfinite(slopes(jnp.zeros((5, 3)))).all()


def brute_contrast(features, ages, predictions, weights, window, temperature, eta):
    unit, found = features / np.linalg.norm(features, axis=1, keepdims=True), np.zeros(len(ages))
    similar = np.exp(unit @ unit.T / temperature)
    for i in range(len(ages)):
        others = [j for j in range(len(ages)) if j != i]
        positive = [j for j in others if abs(ages[i] - ages[j]) <= window]
        negative = [j for j in others if j not in positive and abs(predictions[i] - predictions[j]) <= window]
        if positive and negative:
            pushed = sum(weights[i] * np.exp(eta * abs(ages[i] - ages[j])) * similar[i, j] for j in negative)
            total = pushed + sum(similar[i, p] for p in positive)
            found[i] = -weights[i] * np.mean([np.log(similar[i, p] / total) for p in positive])
    return found


def test_conr_is_the_papers_and_its_gradient_that_of_differences(double):
    ages = np.array([20.0, 21.0, 20.5, 40.0, 41.0, 70.0, 90.0])
    predictions = np.array([30.0, 31.0, 60.0, 30.5, 30.2, 70.0, 30.4])
    features, weights = np.random.default_rng(3).normal(size=(7, 3)), np.linspace(0.5, 2, 7)

    def of_anchors(x, of):
        every = (x, jnp.asarray(ages), jnp.asarray(predictions))
        here = tuple(values[of] for values in every)
        return cure_losses.contrast(here, every, of, jnp.asarray(weights)[of], 1.0, 0.2, 0.01)

    loss, all_places = jax.jit(of_anchors), np.arange(7)
    total = jax.jit(lambda x: of_anchors(x, all_places).sum())
    slopes = jax.jit(jax.grad(total))
    expected = brute_contrast(features, ages, predictions, weights, 1.0, 0.2, 0.01)
    np.testing.assert_allclose(loss(jnp.asarray(features), all_places), expected, rtol=1e-10)
    # 20.5 is not confused with another age; 70 and 90 have no image of their age.
    assert (expected > 0).tolist() == [True, True, False, True, True, False, False]
    np.testing.assert_allclose(loss(jnp.asarray(features), all_places[3:5]), expected[3:5], rtol=1e-10)
    np.testing.assert_allclose(slopes(jnp.asarray(features)), slope(total, features), atol=1e-7)
    assert np.isfinite(slopes(jnp.zeros((7, 3)))).all()


def test_dist_loss_is_the_papers_example(double):
    """Figure 2 of the paper: labels 1, 3, 4, 6 with the expected frequencies 1, 2, 3, 1."""
    counts = np.zeros(101)
    counts[[1, 3, 4, 6]] = 1, 2, 3, 1
    labels = cure_losses.pseudo_labels(counts, 7, 0.01)
    assert labels.tolist() == [1, 3, 3, 4, 4, 4, 6]
    predictions = jnp.array([5.0, 2.0, 6.0, 3.0, 2.0, 7.0, 1.0])  # sorted: 1, 2, 2, 3, 5, 6, 7
    distance = cure_losses.distribution_distance(predictions, predictions, jnp.arange(7), labels)
    assert distance.tolist() == [1, 1, 2, 1, 1, 1, 0]
    moved = jnp.asarray(np.random.default_rng(4).uniform(0, 8, 7))

    distances = jax.jit(lambda x, of: cure_losses.distribution_distance(x[of], x, of, labels))
    np.testing.assert_allclose(
        distances(moved, np.arange(7)).mean(), np.abs(np.sort(moved) - labels).mean(), rtol=1e-12
    )
    np.testing.assert_array_equal(distances(moved, np.arange(2, 4)), distances(moved, np.arange(7))[2:4])
    total = jax.jit(lambda x: distances(x, np.arange(7)).sum())
    np.testing.assert_allclose(jax.jit(jax.grad(total))(moved), slope(total, moved), atol=1e-8)


def test_pseudo_labels_are_quantiles_of_scipys_density():
    ages = np.random.default_rng(5).normal(35, 12, 3000).round().clip(0, 100)
    counts = method_losses.count_ages(ages.astype(int))
    density = distributions.gaussian_kde(ages, 0.5)(np.arange(101))
    labels = cure_losses.pseudo_labels(counts, 200, 0.5)
    expected = np.array([np.argmax(np.cumsum(density) / density.sum() >= (i + 0.5) / 200) for i in range(200)])
    np.testing.assert_array_equal(labels, expected)
    assert cure_losses.pseudo_labels(np.eye(101)[30], 3, 0.5).tolist() == [30, 30, 30]


def constants(dtype=np.float32):
    counts = method_losses.of_training(np.floor(200 * np.exp(-((np.arange(101) - 30) ** 2) / 300)))
    return {"er_weight": 0.5, "label_sigma": 1.0, "in_range": "uniform", **counts}


def cured(name, **changed):
    return stages.with_cure(stages.REPRESENT, given(name, **changed), 3).cure


def test_lds_weights_stage_2s_loss_also_where_ages_are_ranges():
    logits = jax.random.normal(jax.random.key(0), (3, 101))
    c = constants()
    table = c["smoothed"].clip(1) ** -0.5
    table *= c["counts"].sum() / (c["counts"] * table).sum()
    for ages, weights in (
        (jnp.array([3.0, 30.2, 61.0]), table[[3, 30, 61]]),
        (jnp.array([[3.0, 4.0], [30.0, 30.0], [60.0, 62.0]]), [table[3:5].mean(), table[30], table[60:63].mean()]),
    ):
        plain = jax.jit(lambda x, y: stages.REPRESENT.loss(x, y, c))(logits, ages)
        found = jax.jit(lambda x, y: cured("lds").losses(stages.REPRESENT.loss, x, None, y, c, {}, None))(logits, ages)
        np.testing.assert_allclose(found, np.array(weights) * plain, rtol=1e-4)
    assert weights[0] > 3 * weights[1]


def test_balanced_mse_replaces_the_error_and_learns_its_noise(double):
    logits, ages, c = jax.random.normal(jax.random.key(0), (3, 101)) * 2, jnp.array([3.0, 30.2, 61.0]), constants()
    cure = cured("balanced_mse", balanced_mse_noise=4.0)

    @jax.jit
    def loss(noise):
        learned = {"noise": noise}
        return cure.losses(stages.REPRESENT.loss, logits, None, ages, c, learned, None).mean()

    predictions, frequency = np.asarray(losses.expected_age(logits)), c["counts"] / c["counts"].sum()

    def nats(noise):
        evidence = distributions.norm.pdf(np.arange(101)[None, :], predictions[:, None], noise) @ frequency
        return np.mean(np.log(evidence) - distributions.norm.logpdf(np.asarray(ages), predictions, noise))

    divergence = np.asarray(jax.jit(losses.label_divergence)(logits, ages)).mean()
    np.testing.assert_allclose(loss(4.0), divergence + 0.5 * 2 * 16 * nats(4.0), rtol=1e-6)
    # 2 s^2 counts as a constant.
    gradient = jax.grad(loss)(4.0)
    np.testing.assert_allclose(gradient, 0.5 * 2 * 16 * (nats(4.001) - nats(3.999)) / 0.002, rtol=1e-4)
    memory = jax.tree.map(jnp.asarray, cure.first({"fc": {"kernel": np.zeros((8, 101))}}))
    after = cure.end(memory, 0, {"noise": gradient}, None, None)
    np.testing.assert_allclose(after["learned"]["noise"], 4 - 0.01 * np.sign(gradient), rtol=1e-6)


def test_fds_has_mean_and_variance_of_each_epoch_and_the_calibration_of_the_bench(double):
    rng = np.random.default_rng(6)
    classes = np.repeat([20, 21, 22, 40, 60], [9, 2, 7, 4, 1])
    features = rng.normal(size=(2, len(classes), 3)) * (1 + classes[:, None] / 20) + 1000 + classes[:, None]
    statistics = jax.tree.map(jnp.asarray, feature_smoothing.first(101, 3, np.float64))
    np.testing.assert_array_equal(
        feature_smoothing.calibrated(statistics, jnp.asarray(features[0]), jnp.asarray(classes * 1.0)), features[0]
    )
    mean, variance, observed = np.zeros((101, 3)), np.zeros((101, 3)), jax.jit(feature_smoothing.observed)
    after_epoch = jax.jit(lambda kept: feature_smoothing.after_epoch(kept, 0.9))
    for epoch, momentum in enumerate((0.0, 0.9)):
        order = rng.permutation(len(classes))
        for part in np.split(order, [5, 12]):
            ages = jnp.asarray(classes[part] + rng.uniform(-0.4, 0.4, len(part)))
            statistics = observed(statistics, jnp.asarray(features[epoch][part]), ages)
        statistics = after_epoch(statistics)
        for age in {*classes}:
            of_age = features[epoch][classes == age]
            mean[age] = momentum * mean[age] + (1 - momentum) * of_age.mean(axis=0)
            if len(of_age) > 1:
                variance[age] = momentum * variance[age] + (1 - momentum) * of_age.var(axis=0, ddof=1)
        np.testing.assert_allclose(statistics["running_mean"], mean, rtol=1e-10)
        np.testing.assert_allclose(statistics["running_variance"], variance, rtol=1e-8)
        assert not np.any(statistics["images"]) and np.asarray(statistics["known"])[[20, 60, 61]].tolist() == [9, 1, 0]
        if not epoch:
            of_bench = method_losses.smooth_statistics(features[0], classes)
            for name, table in of_bench.items():
                np.testing.assert_allclose(statistics[name], table, rtol=1e-5)
    changed = feature_smoothing.calibrated(statistics, jnp.asarray(features[1]), jnp.asarray(classes * 1.0))
    assert np.abs(np.asarray(changed) - features[1])[classes == 21].max() > 0.1
    np.testing.assert_allclose(changed[-1], features[1][-1], rtol=1e-12)  # no neighbour has images


def test_fds_acts_and_counts_from_the_epochs_that_are_set():
    ages, features = jnp.array([20.0, 20.0, 21.0, 21.0]), jnp.arange(12.0).reshape(4, 3)
    for start_update, start_smooth in ((0, 1), (1, 3)):
        cure = cured("fds", fds_start_update=start_update, fds_start_smooth=start_smooth)
        memory = jax.tree.map(lambda x: jnp.asarray(x)[None], cure.first({"fc": {"kernel": np.zeros((3, 101))}}))
        one = functools.partial(_step, cure, features=features, ages=ages)
        step, changed = jax.jit(jax.vmap(one, axis_name="batch", in_axes=(0, None))), []
        for number in range(12):
            found, memory = step(memory, number)
            changed.append(not np.array_equal(found[0], features))
        assert changed == [number // 3 >= start_smooth for number in range(12)]
        # The last epoch of three steps has just been counted; the one before is in the running statistics.
        assert memory["fds"]["images"][0, 20] == 6 and memory["fds"]["known"][0, 20] == 6


def _step(cure, memory, step, features, ages):
    memory = cure.begin(memory, step)
    return cure.on_features(memory, ages, step)(features), cure.end(memory, step, {}, features, ages)


@pytest.mark.parametrize(("name", "changed", "message"), [
    ("ldz", {}, "config.cure.name: unknown cure 'ldz'; did you mean 'lds'?"),
    ("lds+none", {}, "config.cure.name is 'lds+none': none stands alone"),
    ("", {}, "config.cure.name: unknown cure ''"),
    ("lds+fds+lds", {}, "is 'lds+fds+lds': lds is there twice"),
    ("lds+balanced_mse", {}, "lds and balanced_mse both take the frequency of the ages out of the loss. Use one"),
    ("lds", {"conr_eta": 0.1}, "config.cure.conr_eta belongs to the cure conr, and config.cure.name is 'lds': omit"),
    ("none", {"lds_power": 1.0}, "config.cure.lds_power belongs to the cure lds, and config.cure.name is 'none'"),
    ("fds", {"fds_momentum": 1.0}, "config.cure.fds_momentum is 1.0: it must be at least 0 and below 1"),
    ("fds", {"fds_start_smooth": -1}, "config.cure.fds_start_smooth is -1: it must be a number of at least 0"),
    ("rank_sim", {"rank_sim_strength": 0.0}, "config.cure.rank_sim_strength is 0.0: it must be a number above 0"),
    ("balanced_mse", {"balanced_mse_noise": float("nan")}, "balanced_mse_noise is nan: it must be a number above 0"),
])  # fmt: skip
def test_a_cure_that_cannot_be_used_is_refused(name, changed, message):
    with pytest.raises(InputError, match=re.escape(message)):
        stages.with_cure(stages.REPRESENT, given(name, **changed), 3)


def test_none_is_stage_2_itself_and_other_stages_have_no_cure():
    for stage in stages.STAGES.values():
        assert stages.with_cure(stage, given("none"), 3) is stage
    with pytest.raises(InputError, match="config.cure.name belongs to stage represent, not to classify: omit it"):
        stages.with_cure(stages.CLASSIFY, given("lds"), 3)
    found = cured("fds + rank_sim")
    assert found.names == ("fds", "rank_sim") and found.epoch == 3
    assert (found.for_exact_ages, found.of_whole_batches) == (("fds", "rank_sim"), ("rank_sim",))
    assert cured("lds+dist_loss").for_exact_ages == () and cured("lds").first({}) == {}

"""Drawn faces: pure functions of their arguments, true landmarks, MIVIA's ages, and age that shows but not plainly."""

import dataclasses
import math

import numpy as np
import pytest

from lae_jax import metrics
from lae_jax.data.sources import synthetic
from lae_jax.faces.drawing import looks, render

SIZE = 48


@pytest.fixture(scope="module")
def faces():
    """400 faces with all groups alike: (images float (n, SIZE, SIZE, 3), ages, landmarks)."""
    plan = synthetic.plan(0, 0, 400, seed=3)
    rows = zip(plan.identity.tolist(), plan.age.tolist(), plan.index.tolist(), strict=True)
    images, landmarks = zip(*(synthetic.draw_face(who, age, 3, SIZE, index) for who, age, index in rows), strict=True)
    return np.stack(images).astype(np.float64), plan.age, np.stack(landmarks)


def test_a_face_is_a_pure_function_of_its_arguments():
    image, landmarks = synthetic.draw_face(3, 40.0, 7, SIZE, 2)
    again, same = synthetic.draw_face(3, 40.0, 7, SIZE, 2)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert landmarks.shape == (5, 2) and landmarks.dtype == np.float32
    assert image.tobytes() == again.tobytes() and landmarks.tobytes() == same.tobytes()
    for other in ((4, 40.0, 7, SIZE, 2), (3, 41.0, 7, SIZE, 2), (3, 40.0, 8, SIZE, 2), (3, 40.0, 7, SIZE, 3)):
        assert synthetic.draw_face(*other)[0].tobytes() != image.tobytes()


@pytest.mark.parametrize("age", [0, 1, 100])
@pytest.mark.parametrize("size", [16, 33, 128])
def test_every_age_and_size_is_drawn(age, size):
    image, landmarks = synthetic.draw_face(0, age, 0, size)
    assert image.shape == (size, size, 3) and image.std() > 10
    assert np.all((landmarks > 0) & (landmarks < size))


def test_another_size_is_the_same_picture():
    small, few = synthetic.draw_face(5, 30, 0, 64)
    large, many = synthetic.draw_face(5, 30, 0, 128)
    np.testing.assert_allclose(many, 2 * few, rtol=1e-4)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 8


def test_landmarks_lie_in_the_picture_and_in_order(faces):
    places = faces[2]
    assert places.min() > 0 and places.max() < SIZE
    left, right, nose, mouth_left, mouth_right = places.transpose(1, 2, 0)
    assert np.all(left[0] < right[0]) and np.all(mouth_left[0] < mouth_right[0])
    assert np.all(np.maximum(left[1], right[1]) < nose[1])
    assert np.all(nose[1] < (mouth_left[1] + mouth_right[1]) / 2)


def plain(**changes):
    """A look without noise, camera or things in the way, facing the camera."""
    look = looks.look_of(0, 30.0, 0, 0)
    calm = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, "shift": (0.0, 0.0), "gaze": 0.0, "eye_open": 0.07, "hood": 0.0}
    calm |= {"glasses": 0.0, "hat": False, "occluder": (), "blur": 0.0, "noise": 0.0, "quality": 0, "exposure": 1.0}
    return dataclasses.replace(look, **(calm | {"skin": (0.9, 0.75, 0.65)} | changes))


def draw(look, size=128):
    return render.render(look, size, np.random.default_rng(0))


def test_landmarks_move_with_the_pose():
    straight = draw(plain())[1]
    np.testing.assert_allclose(straight[0, 1], straight[1, 1], atol=1e-3)
    np.testing.assert_allclose(straight[2, 0], 64, atol=1e-3)
    turned = draw(plain(yaw=math.radians(20)))[1]
    assert turned[2, 0] - straight[2, 0] > turned[:2, 0].mean() - straight[:2, 0].mean() > 5  # the nose stands out
    nodded = draw(plain(pitch=math.radians(12)))[1]
    assert np.all(nodded[:, 1] > straight[:, 1])
    rolled = draw(plain(roll=math.radians(15)))[1]
    slope = np.arctan2(*(rolled[1] - rolled[0])[::-1])
    np.testing.assert_allclose(slope, math.radians(15), atol=1e-3)


@pytest.mark.parametrize("pose", [{}, {"yaw": 0.3}, {"yaw": -0.3, "roll": 0.2}, {"pitch": 0.2, "roll": -0.15}])
def test_the_eyes_are_drawn_where_the_landmarks_say(pose):
    """The pupil and iris are the darkest spot about an eye."""
    image, landmarks = draw(plain(iris=(0.05, 0.04, 0.03), lash=0.0, brow_alpha=0.0, **pose))
    dark = np.maximum(90 - image.astype(float).max(-1), 0)
    for x, y in landmarks[:2]:
        rows, columns = np.mgrid[int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9]
        weight = dark[rows, columns]
        centre = (columns + 0.5) * weight, (rows + 0.5) * weight
        assert math.hypot(centre[0].sum() / weight.sum() - x, centre[1].sum() / weight.sum() - y) < 2.0


def test_mivia_counts_are_the_published_ones():
    counts = np.array(synthetic.MIVIA_AGE_COUNTS)
    assert counts.sum() == 575_073
    decades = np.bincount(metrics.age_group(np.arange(1, 82)), weights=counts).tolist()
    assert decades == [2_008, 28_517, 147_443, 150_010, 128_253, 88_489, 27_871, 2_482]


def test_a_plan_has_mivia_ages_and_a_balanced_test_set():
    plan = synthetic.plan(3000, 601, 83, seed=1)
    assert len(plan) == 3684
    expected = np.array(synthetic.MIVIA_AGE_COUNTS) / 575_073
    for split, count in (("train", 3000), ("validation", 601)):
        classes = np.floor(plan.age[plan.split == split] + 0.5).astype(int)
        histogram = np.bincount(classes, minlength=82)[1:]
        assert histogram.sum() == count
        assert np.abs(histogram - count * expected).max() <= 2  # rounding, and what topping up takes
        assert np.bincount(metrics.age_group(plan.age[plan.split == split])).min() >= synthetic.MIN_IN_GROUP
    np.testing.assert_array_equal(
        np.bincount(metrics.age_group(plan.age[plan.split == "test"])), [11, 11, 11, 10, 10, 10, 10, 10]
    )


def test_small_plans_are_topped_up_from_the_largest_groups():
    ages = synthetic.plan(0, 32, 0).age
    assert len(ages) == 32 and np.bincount(metrics.age_group(ages), minlength=8).min() == synthetic.MIN_IN_GROUP
    assert len(synthetic.plan(5, 1, 0)) == 6 and len(synthetic.plan(0, 0, 0)) == 0


def test_people_stay_in_one_split_and_their_pictures_span_some_years():
    plan = synthetic.plan(2000, 400, 400, images_per_identity=5, seed=2)
    splits = [set(plan.identity[plan.split == name].tolist()) for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == pytest.approx(2800 / 5, rel=0.12)
    assert len(set(plan.name.tolist())) == len(plan)
    assert plan.name[0] == f"{plan.identity[0]:05d}/{plan.index[0]}.jpg"
    spans = [np.ptp(plan.age[plan.identity == person]) for person in splits[0]]
    assert 3 < np.mean(spans) < 15
    for person in list(splits[0])[:20]:
        mine = plan.index[plan.identity == person]
        assert sorted(mine) == list(range(len(mine)))


def test_a_plan_depends_on_its_seed_alone():
    one, same, other = (synthetic.plan(200, 40, 40, seed=seed) for seed in (1, 1, 2))
    for column in ("name", "identity", "age", "split", "seed", "index"):
        np.testing.assert_array_equal(getattr(one, column), getattr(same, column))
    assert not np.array_equal(one.age, other.age)


def box_mean(values, landmarks, rows, columns):
    """Mean in a box about the middle of the eyes, in shares of the distance between them: (n, H, W) -> (n,)."""
    means = []
    for picture, places in zip(values, landmarks, strict=True):
        (x, y), unit = places[:2].mean(0), np.ptp(places[:2, 0])
        top, bottom = np.clip(np.round(y + unit * np.array(rows)), 0, len(picture) - 1).astype(int)
        left, right = np.clip(np.round(x + unit * np.array(columns)), 0, len(picture) - 1).astype(int)
        means.append(picture[top : bottom + 1, left : right + 1].mean())
    return np.array(means)


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def wrinkles(grey, landmarks):
    """How much neighbours differ over cheeks and mouth, in shares of how bright they are."""
    steps = np.abs(np.diff(grey, axis=2))
    lower = (0.5, 1.0), (-0.75, 0.75)
    return box_mean(steps, landmarks, *lower) / box_mean(grey, landmarks, *lower)


def test_age_shows_in_the_pixels_in_several_ways_and_in_none_plainly(faces):
    images, ages, places = faces
    grey = images.mean(-1)
    hair = box_mean(grey, places, (-1.5, -1.2), (-0.4, 0.4)) / box_mean(grey, places, (0.3, 0.5), (-0.6, 0.6))
    shape = (places[:, 3:].mean(1) - places[:, :2].mean(1))[:, 1] / np.hypot(*(places[:, 1] - places[:, 0]).T)
    child = ages < 20
    assert 0.3 < correlation(hair[~child], ages[~child]) < 0.9  # grey and gone
    assert 0.2 < correlation(wrinkles(grey, places), ages) < 0.9
    assert 0.2 < correlation(shape[child], ages[child]) < 0.95  # a child's face is short below the eyes


def test_the_same_picture_of_an_older_person_has_more_wrinkles():
    energy = []
    for age in (25.0, 50.0, 75.0):
        drawn = [synthetic.draw_face(person, age, 0, 64) for person in range(40)]
        grey = np.stack([image for image, _ in drawn]).mean(-1)
        energy.append(wrinkles(grey, [places for _, places in drawn]))
    assert energy[0].mean() < energy[1].mean() < energy[2].mean()
    assert 0.65 < np.mean(energy[0] < energy[2]) < 1.0


def test_hair_turns_grey_and_wrinkles_deepen_with_noise():
    ages = np.linspace(20, 80, 200)
    drawn = [looks.look_of(k, age, 0, 0) for k, age in enumerate(ages)]
    cues = {"grey": [look.grey for look in drawn], "hairline": [-look.hairline for look in drawn]}
    cues |= {kind: [look.creases[kind] for look in drawn] for kind in ("forehead", "crow", "fold", "bag", "drop")}
    for name, values in cues.items():
        assert 0.3 < correlation(values, ages) < 0.97, name


def test_cues_go_on_changing_among_children_and_the_old():
    for low, high, cues in (
        (1, 15, {"eye_v": -1, "eye_w": -1, "nose_out": 1, "nose_v": -1, "mouth_w": 1}),
        (60, 81, {"ear": 1, "hood": 1, "lip": -1, "hollow": 1, "grey": 1}),
    ):
        for name, sign in cues.items():
            young, old = ([getattr(looks.look_of(k, age, 0, 0), name) for k in range(40)] for age in (low, high))
            gap = sign * (np.mean(old) - np.mean(young))
            assert gap > 0.5 * np.sqrt((np.var(old) + np.var(young)) / 2), name


def test_pixels_tell_age_better_than_a_guess_and_far_from_exactly(faces):
    """Ridge regression on coarse pixels, people kept apart by halves."""
    images, ages, _ = faces
    coarse = images.reshape(len(images), 12, 4, 12, 4, 3).mean((2, 4)).reshape(len(images), -1) / 255
    errors = []
    for held in (slice(0, 200), slice(200, 400)):
        train = np.ones(len(ages), bool)
        train[held] = False
        middle, mean = coarse[train].mean(0), ages[train].mean()
        x = coarse[train] - middle
        weights = np.linalg.solve(x.T @ x + 20 * np.eye(x.shape[1]), x.T @ (ages[train] - mean))
        errors.append(np.abs((coarse[held] - middle) @ weights + mean - ages[held]).mean())
    guess = np.abs(ages - ages.mean()).mean()
    assert 4 < np.mean(errors) < 0.75 * guess


@pytest.mark.parametrize(
    "change, words",
    [
        ({"age": -1}, "age -1 is outside 0..100"),
        ({"age": 100.5}, "age 100.5 is outside"),
        ({"age": math.nan}, "age nan is outside"),
        ({"size": 15}, "size 15 is under 16"),
        ({"identity": -1}, "identity -1 is negative"),
        ({"seed": -2}, "seed -2 is negative"),
        ({"index": -3}, "index -3 is negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        synthetic.draw_face(**({"identity": 0, "age": 30, "seed": 0, "size": 32} | change))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((-1, 0, 0), "num_train is -1"),
        ((0, -1, 0), "num_validation is -1"),
        ((0, 0, -1), "num_test is -1"),
        ((1, 1, 1, 0.5), "images_per_identity is 0.5"),
        ((1, 1, 1, 6, -1), "seed -1 is negative"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        synthetic.plan(*arguments)

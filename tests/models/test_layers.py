"""Layers: forms of convolutions and of pooling for a CPU, padding, masks by row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lae_jax.models import layers
from lae_jax.models.layers import Compute, Conv


def assert_equal(got, expected):
    """In float64."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), got, expected)


@pytest.mark.parametrize(
    ("form", "kernel", "size", "stride", "padding"),
    [
        ("shifted_depthwise", (3, 3, 1, 4), 7, 1, "same"),
        ("shifted_depthwise", (3, 3, 1, 4), 7, 2, "same"),
        ("shifted_depthwise", (3, 3, 1, 4), 8, 2, "same"),
        ("shifted_depthwise", (3, 3, 1, 4), 8, 1, 1),
        ("shifted_depthwise", (5, 5, 1, 4), 1, 1, "same"),
        ("shifted_depthwise", (5, 5, 1, 4), 2, 1, "same"),
        ("shifted_depthwise", (5, 5, 1, 4), 3, 2, "same"),
        ("shifted_depthwise", (5, 5, 1, 4), 8, 2, "same"),
        ("pointwise", (1, 1, 4, 6), 8, 1, 0),
        ("pointwise", (1, 1, 4, 6), 7, 2, 0),
        ("gathered", (3, 3, 4, 6), 2, 1, "same"),
        ("gathered", (3, 3, 4, 6), 3, 2, 1),
        ("gathered", (3, 3, 4, 6), 4, 2, "same"),
    ],
)
def test_forms_for_a_cpu_equal_the_convolution(form, kernel, size, stride, padding, monkeypatch):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((2, size, size, 4)), rng.standard_normal(kernel)

        def evaluate(convolutions, x, w):
            compute = Compute(jnp.dtype("float64"), convolutions=convolutions)
            module = Conv(compute, kernel[3], kernel[0], stride, padding, depthwise=kernel[2] == 1)
            out, pull = jax.vjp(lambda x, w: module.apply({"params": {"kernel": w}}, x), x, w)
            return out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

        @jax.jit
        def both(x, w):
            return evaluate("xla", x, w), evaluate("cpu", x, w)

        expected, got = both(x, w)
        assert expected[0].dtype == jnp.float64
        assert_equal(got, expected)
        with monkeypatch.context() as patch:
            patch.setattr(layers, form, lambda *_: pytest.fail("taken"))
            jax.eval_shape(partial(evaluate, "xla"), x, w)
            with pytest.raises(pytest.fail.Exception, match="taken"):
                jax.eval_shape(partial(evaluate, "cpu"), x, w)


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (8, 9)])
def test_max_pooling_for_a_cpu_equals_that_of_xla(size):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.permutation(2.0 * np.arange(2 * size[0] * size[1] * 3)).reshape(2, *size, 3) - 50

        @partial(jax.jit, static_argnums=1)
        def both(x, convolutions):
            out, pull = jax.vjp(lambda x: layers.max_pool(x, Compute(jnp.dtype("float64"), None, convolutions)), x)
            return out, pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

        assert_equal(both(x, "cpu"), both(x, "xla"))
        # Of equal pixels the first has it, none is lost, and a NaN does not hide.
        ones, (_, grad) = np.ones_like(x), both(np.ones_like(x), "cpu")
        np.testing.assert_allclose(grad, both(ones, "xla")[1], rtol=1e-12, atol=1e-12)
        x[0, 2, 2, 0] = np.nan
        assert np.isnan(both(x, "cpu")[0]).sum() == np.isnan(both(x, "xla")[0]).sum() == 1


@pytest.mark.parametrize("size", [7, 8, 97])
def test_same_padding_is_that_of_tensorflow(size):
    for kernel in (1, 3, 5):
        for stride in (1, 2):
            expected = jax.lax.padtype_to_pads((size,), (kernel,), (stride,), "SAME")
            assert [layers.same_padding(size, kernel, stride)] == [tuple(pads) for pads in expected]
    x = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((3, 3, 3, 2)).astype(np.float32)
    got = Conv(Compute(), 2, 3, 2).apply({"params": {"kernel": w}}, x)
    expected = jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)


def test_masks_depend_on_the_key_and_the_row_alone():
    x, rows = np.ones((64, 100), np.float32), np.arange(64) + 1000
    key = jax.random.key(0)
    drop = jax.jit(layers.drop, static_argnums=(3, 4))
    whole = np.asarray(drop(x, key, rows, 0.2, (100,)))
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(drop(x, key, rows[order], 0.2, (100,)), whole[order])
    assert not np.array_equal(drop(x, jax.random.key(1), rows, 0.2, (100,)), whole)
    assert set(np.unique(whole)) == {0, np.float32(1.25)}
    # 6400 draws: four standard deviations.
    assert abs((whole == 0).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 6400)
    with jax.enable_x64(True):
        assert np.array_equal(drop(x, key, rows, 0.2, (100,)), whole)
    with pytest.raises(ValueError, match="rows"):
        drop(x, key, rows[:1], 0.2, (100,))

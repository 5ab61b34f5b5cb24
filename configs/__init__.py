"""The configurations that `python -m lae_jax.main --config` takes; the package ships them as lae_jax.configs."""

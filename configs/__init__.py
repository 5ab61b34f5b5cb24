"""The configs for `python -m lae_jax.main --config`. The package ships them as lae_jax.configs."""

"""Models as other programs call them: one file a format, the folder that they lie in, and their model card.

`folder.open_export` reads a folder that `lae_jax.export` wrote; it needs the format's own runtime and no model of ours.
"""

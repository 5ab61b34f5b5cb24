"""Drawn faces: people with an age, an identity and a look, painted by numpy."""

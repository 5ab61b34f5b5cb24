"""The long-tail bench: cures for a long tail that touch the head alone, compared on cached features."""

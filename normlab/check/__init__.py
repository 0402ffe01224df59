"""Properties that every norm must have, ours or the user's own, whatever its formula."""

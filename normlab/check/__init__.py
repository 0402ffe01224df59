"""What has to hold of a norm, ours or the user's own, whatever its formula is."""

"""A package, so that one of the same name that a library brings along does not go first."""

"""The configuration of a run as checked data, and what all of the package shares with it: strict YAML and seeds."""

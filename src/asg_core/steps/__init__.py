"""One training step each, in the order of the paper's figure: collect samples and rewards, then update the roles."""

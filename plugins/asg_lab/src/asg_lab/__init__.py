"""Studies, outside benchmarks and their data sets for asg-core."""

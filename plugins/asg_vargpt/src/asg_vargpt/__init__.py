"""VARGPT-v1.1 as a backbone of asg-core. Importing this package imports no model code."""

__version__ = "0.1.0"

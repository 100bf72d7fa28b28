"""Makes the weights of the embedded backbone of asg_core again, and measures them."""

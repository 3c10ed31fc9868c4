"""The objective around the weights: its value at ``w + e``, its gradient there, its mean gradient there."""

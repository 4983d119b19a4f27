"""One choice a file: which axes, how deviations count, how many neurons, what the weights become."""

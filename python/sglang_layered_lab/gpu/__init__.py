"""Where the time of a step goes on a GPU, by kernels. What a GPU host has to pass is in test/gpu."""

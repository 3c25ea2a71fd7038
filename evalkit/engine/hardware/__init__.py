"""What the engine computes on: which device, with which kernels, and what suits a CPU."""

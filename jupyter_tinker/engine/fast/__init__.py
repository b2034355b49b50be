"""Layers of Llama's structure, forward and backward, without padding and without autograd."""

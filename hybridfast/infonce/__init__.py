"""The fused InfoNCE loss: its definition, its ops, and the kernels that compute it on every device."""

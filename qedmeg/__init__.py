"""qedmeg: post-training for proof-writing models on Megatron-core."""

__version__ = "0.1.0"

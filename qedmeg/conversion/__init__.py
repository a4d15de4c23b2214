"""Between Hugging Face and Megatron-core checkpoints, and the proof that nothing changed on the way."""

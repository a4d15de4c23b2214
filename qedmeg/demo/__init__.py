"""`make demo`: the main job from a Hugging Face checkpoint to graded proofs, small enough for two CPU cores."""

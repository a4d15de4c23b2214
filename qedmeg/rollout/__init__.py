"""Proofs written by a model: the vLLM engine."""

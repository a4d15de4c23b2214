"""From problems and teacher proofs to packed, masked token batches."""

"""The policy a trainer drives, its optimizer, checkpoints and losses."""

"""What a person watches: progress, metrics, reports."""

"""A local web page over evaluations and runs: scores, proofs, grades and calls, and grading by hand."""

"""One harness for every benchmark: proofs of any model or scaffold, their grades, and what the grades say."""

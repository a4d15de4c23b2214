"""What a grade is, what a rubric is, and who gives the points."""

"""Where weights come from: every folder that holds a model says so in its `lineage.json`."""

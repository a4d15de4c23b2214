"""Tests; a package, since one of the dependencies installs a top-level package of the same name."""

"""Processes of tests that have torch, Megatron-core and NeMo-Aligner from their start: forked from one that has
imported them once, which takes longer than most tests."""

import multiprocessing

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.forked_from"])

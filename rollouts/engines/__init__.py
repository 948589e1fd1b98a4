"""Engines that sample and score, behind one protocol."""
